"""What the page shows of an optimization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnxopt.report.formats import (
    bytes_text,
    decibels_text,
    latency_text,
    percent_text,
    ratio_text,
    seconds_text,
)
from onnxopt.report.page import layer_charts, run_charts
from onnxopt.report.page.circumstances import circumstances
from onnxopt.report.page.layer_table import layer_table, noise_cell
from onnxopt.report.page.tables import Cell, Column, Table, cell
from onnxopt.report.page.views import ReportView, short_name
from onnxopt.runtime.statistics import Latency, Ratio

__all__ = ["before_and_after", "decibels", "run_view"]

_Facts = Mapping[str, Any]
#: So many nodes of the original are listed.
_MOST_NODES = 2000


def run_view(document: _Facts, prefix: str, room: int) -> ReportView:
    """Look at the report of a run that made a model out of another."""
    page = ReportView(
        prefix,
        document["kind"],
        f"{short_name(document['source'])} → "
        + (short_name(document["target"]) if document["target"] else "not written"),
        document,
    )
    layers = document.get("layers", [])
    page.lead = list(_lead(document, layers))
    page.cards = list(_cards(document))
    _add_results(page)
    _add_search(page)
    _add_stages(page)
    _add_layers(page, layers, room)
    _add_histograms(page)
    _add_treatments(page)
    _add_pipeline(page)
    curves = run_charts.curve_charts(prefix, document.get("curves", []))
    if curves:
        page.add("training", "Training", charts=curves)
    page.add("again", "How to see this again", facts=list(_circumstances(document)))
    return page


def decibels(value: float | None) -> str:
    """A signal-to-noise ratio of a report, in which null stands for infinity."""
    return "equal" if value is None else decibels_text(value)


def before_and_after(document: _Facts) -> list[tuple[str, ...]]:
    """What is measured of both models: name, before, after, change, whether that is good."""
    before, after = document["before"], document["after"]
    rows: list[tuple[str, ...]] = []
    if document.get("speed") is not None:
        speed = _ratio(document["speed"])
        state = "" if speed.is_noise else "good" if speed.median > 1 else "bad"
        times = [latency_text(Latency(**facts["latency"])) for facts in (before, after)]
        rows.append(("latency of one run", *times, ratio_text(speed), state))
    amounts = (
        ("file size", "bytes", bytes_text),
        ("file size, zipped", "zip_bytes", bytes_text),
        ("load time", "load_seconds", seconds_text),
        ("memory to load", "load_memory_bytes", bytes_text),
        ("peak memory", "peak_memory_bytes", bytes_text),
    )
    for label, field, text in amounts:
        one, other = before.get(field), after.get(field)
        if one is not None and other is not None:
            rows.append(
                (label, text(one), text(other), percent_text(one, other), _less(one, other))
            )
    one, other = before["nodes"], after["nodes"]
    rows.append(("nodes", f"{one:,}", f"{other:,}", percent_text(one, other), ""))
    if before.get("kernels") and after.get("kernels"):
        one, other = (sum(facts["kernels"].values()) for facts in (before, after))
        rows.append(("kernels run", f"{one:,}", f"{other:,}", percent_text(one, other), ""))
    return rows


def _less(before: float, after: float) -> str:
    """Whether an amount became less, by enough to be worth a colour."""
    if not before or abs(after / before - 1) < 0.02:
        return ""
    return "good" if after < before else "bad"


def _ratio(facts: _Facts) -> Ratio:
    return Ratio(facts["median"], facts["low"], facts["high"])


# At the top


def _lead(document: _Facts, layers: Sequence[_Facts]) -> Iterator[str]:
    """What was gained, what it cost, and which layer is to blame, one sentence each."""
    if document["changed"]:
        yield f"Gained: {', '.join(_gains(document))}."
        yield f"Cost: {_cost(document)}"
    else:
        yield "Nothing was found to improve: the output is the input."
    yield from _blame(layers, document.get("search") or {})
    if document["undone"]:
        names = ", ".join(each["name"] for each in document["undone"])
        yield f"Undone, because the result was no good: {names}."


def _gains(document: _Facts) -> Iterator[str]:
    if document.get("speed") is not None:
        speed = _ratio(document["speed"])
        yield (
            "no speed that could be told from noise"
            if speed.is_noise
            else f"{speed.median:.2f} times the original's speed"
        )
    for label, field in (("file", "bytes"), ("peak memory", "peak_memory_bytes")):
        before, after = document["before"].get(field), document["after"].get(field)
        if before and after is not None:
            change = 100 * (after / before - 1)
            word = "smaller" if change < 0 else "larger"
            yield f"{label} {abs(change):.1f} % {word}" if round(change, 1) else f"{label} the same"


def _cost(document: _Facts) -> str:
    fidelity = document.get("fidelity")
    if fidelity is not None:
        parts = [f"{decibels(fidelity['sqnr_db'])} signal to noise at the worst output"]
        agreement = fidelity.get("agreement")
        if agreement is not None:
            parts.append(f"{agreement['fraction']:.1%} of decisions the same")
        return f"{', '.join(parts)}, on {fidelity['samples']:,} samples."
    if not document["verified"]:
        return "not known, since outputs were not compared."
    worst = _worst(document["differences"])
    if worst is None or worst["max_abs"] == 0:
        return "nothing; all outputs are equal."
    return (
        f"rounding only; the outputs agree to {worst['max_abs']:.2g} ({decibels(worst['snr_db'])})."
    )


def _blame(layers: Sequence[_Facts], search: _Facts) -> Iterator[str]:
    timed = [each for each in layers if each.get("seconds")]
    total = sum(each["seconds"] for each in timed)
    if timed and total:
        slowest = max(timed, key=lambda each: each["seconds"])
        share = slowest["seconds"] / total
        operator = slowest.get("operator", "")
        yield f"Slowest layer: {slowest['name']} ({operator}), {share:.0%} of a run."
    noisy = [each for each in layers if each.get("sqnr_db") is not None]
    if noisy:
        worst = min(noisy, key=lambda each: each["sqnr_db"])
        yield f"Noisiest layer: {worst['name']}, at {worst['sqnr_db']:.1f} dB signal to noise."
        return
    regions = [each for each in search.get("regions", ()) if each.get("sqnr_db") is not None]
    if regions:
        worst = min(regions, key=lambda each: each["sqnr_db"])
        yield (
            f"Noisiest region: {worst['name']} ({worst.get('treatment', '')}), which alone takes "
            f"the output to {worst['sqnr_db']:.1f} dB."
        )


def _cards(document: _Facts) -> Iterator[tuple[str, str, str, str]]:
    before, after = document["before"], document["after"]
    if document.get("speed") is not None:
        speed = _ratio(document["speed"])
        state = "" if speed.is_noise else "good" if speed.median > 1 else "bad"
        spread = f"{speed.low:.2f} to {speed.high:.2f}"
        value, remark = (
            ("the same", ratio_text(speed))
            if speed.is_noise
            else (
                f"{speed.median:.2f}x",
                spread,
            )
        )
        yield "speed", value, remark, state
    sizes = before["bytes"], after["bytes"]
    arrow = " → ".join(bytes_text(size) for size in sizes)
    yield "size", percent_text(*sizes), arrow, _less(*sizes)
    peaks = before.get("peak_memory_bytes"), after.get("peak_memory_bytes")
    if None not in peaks:
        arrow = " → ".join(bytes_text(each) for each in peaks)
        yield "peak memory", percent_text(*peaks), arrow, _less(*peaks)
    yield "answers", *_answers(document)


def _answers(document: _Facts) -> tuple[str, str, str]:
    fidelity = document.get("fidelity")
    if not document["changed"]:
        return "the same", "nothing was changed", "good"
    if fidelity is not None:
        samples = f"on {fidelity['samples']:,} samples that nothing was fitted to"
        agreement = fidelity.get("agreement")
        if agreement is None:
            return decibels(fidelity["sqnr_db"]), f"signal to noise, {samples}", "good"
        low, high = agreement["interval"]
        return (
            f"{agreement['fraction']:.1%}",
            f"of {agreement['total']:,} decisions the same ({low:.1%} to {high:.1%}), {samples}",
            "good",
        )
    if not document["verified"]:
        return "not compared", "verification was off or not possible", "bad"
    worst = _worst(document["differences"])
    if worst is None or worst["max_abs"] == 0:
        return "equal", f"on {document['feeds']} feeds", "good"
    return decibels(worst["snr_db"]), f"worst of {document['feeds']} feeds: rounding only", "good"


def _worst(differences: Sequence[_Facts]) -> _Facts | None:
    finite = [each for each in differences if not each["own_noise"] and each["snr_db"] is not None]
    return min(finite, key=lambda each: each["snr_db"], default=None)


# The sections


def _add_results(page: ReportView) -> None:
    document = page.document
    before, after = document["before"], document["after"]
    charts = []
    if before.get("latency") and after.get("latency") and document["changed"]:
        charts.append(
            run_charts.latency_chart(
                f"{page.prefix}-latency",
                {"original": before["latency"], "result": after["latency"]},
            )
        )
    if before.get("kernel_seconds") and after.get("kernel_seconds"):
        charts.append(
            run_charts.kernel_chart(
                f"{page.prefix}-kernels", before["kernel_seconds"], after["kernel_seconds"]
            )
        )
    page.add(
        "results",
        "What came out",
        rows=before_and_after(document),
        charts=charts,
        outputs=_output_table(page),
        idle=None
        if document.get("idle_memory_bytes") is None
        else bytes_text(document["idle_memory_bytes"]),
        inputs=document.get("inputs") or {},
        undone=document["undone"],
        notes=document["notes"],
    )


def _output_table(page: ReportView) -> Table | None:
    """How true each output is."""
    document = page.document
    name = f"{page.prefix}-outputs"
    fidelity = document.get("fidelity")
    if fidelity is not None:
        return Table.of_records(
            name,
            f"Outputs against the original's, on {fidelity['samples']:,} samples.",
            fidelity["outputs"],
            [
                (Column("output", breaks=True), lambda each: Cell(each["output"])),
                (Column("S/N (dB)", True), noise_cell),
                (Column("mean cosine", True), lambda each: cell(each["cosine"], "{:.5f}".format)),
                (
                    Column("worst cosine", True),
                    lambda each: cell(each["worst_cosine"], "{:.5f}".format),
                ),
                (Column("decisions the same"), lambda each: Cell(_agreement(each["agreement"]))),
                (Column("remark"), lambda each: Cell(each["mismatch"])),
            ],
        )
    if not document["differences"]:
        return None
    worst: dict[str, _Facts] = {}
    for each in document["differences"]:
        known = worst.setdefault(each["output"], each)
        if each["max_abs"] > known["max_abs"]:
            worst[each["output"]] = each
    return Table.of_records(
        name,
        f"Largest difference of each output over {document['feeds']} feeds.",
        list(worst.values()),
        [
            (Column("output", breaks=True), lambda each: Cell(each["output"])),
            (
                Column("largest difference", True),
                lambda each: cell(each["max_abs"], "{:.3g}".format),
            ),
            (
                Column("S/N", True),
                lambda each: Cell(decibels(each["snr_db"]), each["snr_db"] or 1e9),
            ),
            (
                Column("remark"),
                lambda each: Cell(
                    "the original is as far from itself" if each["own_noise"] else each["reason"]
                ),
            ),
        ],
    )


def _agreement(facts: _Facts | None) -> str:
    if facts is None:
        return ""
    low, high = facts["interval"]
    return f"{facts['same']:,} of {facts['total']:,} ({low:.1%} to {high:.1%})"


def _add_search(page: ReportView) -> None:
    search = page.document.get("search")
    if not search:
        return
    tried = search["tried"]
    page.tried = [
        {
            "label": each["label"],
            "reason": each.get("reason", ""),
            "treatments": each.get("treatments", {}),
        }
        for each in tried
    ]
    numbered = [{**each, "index": index} for index, each in enumerate(tried)]
    points = Table.of_records(
        f"{page.prefix}-tried",
        f"{len(tried):,} models that were tried.",
        numbered,
        [
            (Column("tried"), lambda each: Cell(each["label"], picked=each["index"])),
            (Column("speed", True), lambda each: cell(each.get("speed"), "{:.2f}x".format)),
            (Column("S/N (dB)", True), noise_cell),
            (
                Column("equal decisions", True),
                lambda each: cell(each.get("agreement"), "{:.1%}".format),
            ),
            (Column("own measure", True), lambda each: cell(each.get("score"), "{:.4g}".format)),
            (
                Column("size", True),
                lambda each: cell(each.get("bytes"), lambda size: bytes_text(int(size))),
            ),
            (
                Column("speed is"),
                lambda each: Cell("timed" if each.get("measured", True) else "expected"),
            ),
            (Column("chosen"), lambda each: Cell("chosen" if each.get("chosen") else "")),
            (Column("why", wide=True), lambda each: Cell(each.get("reason", ""))),
        ],
        tall=len(tried) > 20,
    )
    regions = Table.of_records(
        f"{page.prefix}-regions",
        f"{len(search['regions']):,} regions that were decided on.",
        search["regions"],
        [
            (Column("region", breaks=True), lambda each: Cell(each["name"])),
            (
                Column("nodes", True),
                lambda each: Cell(
                    f"{len(each.get('nodes', ())):,}",
                    len(each.get("nodes", ())),
                    ", ".join(each.get("nodes", ())),
                ),
            ),
            (Column("treatment"), lambda each: Cell(each.get("treatment", ""))),
            (
                Column("time before", True),
                lambda each: cell(each.get("seconds_before"), seconds_text),
            ),
            (Column("time", True), lambda each: cell(each.get("seconds"), seconds_text)),
            (Column("S/N of it alone (dB)", True), noise_cell),
            (Column("why", wide=True), lambda each: Cell(each.get("reason", ""))),
        ],
        tall=len(search["regions"]) > 20,
    )
    page.add(
        "search",
        "What was tried",
        goal=search.get("goal", ""),
        budget=search.get("budget", ""),
        chart=run_charts.tradeoff_chart(f"{page.prefix}-tradeoff", tried),
        tried=points if tried else None,
        regions=regions if search["regions"] else None,
    )


def _add_stages(page: ReportView) -> None:
    stages = page.document.get("stages", [])
    if not stages:
        return
    table = Table.of_records(
        f"{page.prefix}-stages",
        "Stations of the road, in order.",
        stages,
        [
            (Column("stage"), lambda each: Cell(each["name"])),
            (Column("kept"), lambda each: Cell("kept" if each.get("kept", True) else "undone")),
            (Column("took", True), lambda each: cell(each.get("seconds"), seconds_text)),
            (
                Column("size", True),
                lambda each: cell(each.get("bytes"), lambda size: bytes_text(int(size))),
            ),
            (
                Column("latency", True),
                lambda each: cell(each.get("latency_seconds"), seconds_text),
            ),
            (Column("speed", True), lambda each: cell(each.get("speed"), "{:.2f}x".format)),
            (Column("S/N (dB)", True), noise_cell),
            (
                Column("equal decisions", True),
                lambda each: cell(each.get("agreement"), "{:.1%}".format),
            ),
            (Column("own measure", True), lambda each: cell(each.get("score"), "{:.4g}".format)),
            (
                Column("zeros (%)", True),
                lambda each: cell(each.get("zeros"), lambda zeros: f"{100 * zeros:.1f}"),
            ),
            (Column("why", wide=True), lambda each: Cell(each.get("reason", ""))),
        ],
    )
    chart = run_charts.stage_chart(f"{page.prefix}-stages-chart", stages)
    page.add("stages", "Stages", table=table, chart=chart)


def _add_layers(page: ReportView, layers: Sequence[_Facts], room: int) -> None:
    if not layers:
        return
    prefix, data = page.prefix, f"{page.prefix}-all-layers"
    rows, unit = layer_charts.layer_rows(layers)
    page.data[data] = rows
    charts = [
        chart
        for chart in (
            layer_charts.slowest_chart(f"{prefix}-slowest", layers),
            layer_charts.noise_chart(f"{prefix}-noise", data, rows),
            layer_charts.bytes_chart(f"{prefix}-bytes", data, rows, unit),
            layer_charts.zeros_chart(f"{prefix}-zeros", data, rows),
        )
        if chart is not None
    ]
    table = layer_table(f"{prefix}-layers", layers, room)
    page.add("layers", "Layers", charts=charts, table=table)


def _add_histograms(page: ReportView) -> None:
    histograms = page.document.get("histograms", [])
    if not histograms:
        return
    for each in histograms:
        counts, edges = layer_charts.fewer_bins(each["counts"], each["edges"])
        page.histograms[each["tensor"]] = {
            "counts": counts,
            "edges": [float(f"{edge:.6g}") for edge in edges],
            "ends": [each[end] for end in ("low", "high") if each.get(end) is not None],
            "about": f"{each.get('kind', 'activation')}, {sum(counts):,} values"
            + (f", range by {each['method']}" if each.get("method") else ""),
        }
    page.add(
        "histograms",
        "Ranges of tensors",
        chart=layer_charts.histogram_chart(f"{page.prefix}-histogram"),
        tensors=list(page.histograms),
    )


def _add_treatments(page: ReportView) -> None:
    """Every node of the original, and why it is in 8 bits or not."""
    nodes = page.document.get("treatments", [])
    if not nodes:
        return
    listed = [each for each in nodes if each["operator"] != "Constant"]
    shown = listed[:_MOST_NODES]
    caption = f"{len(listed):,} nodes of the original, constants left out."
    if len(shown) < len(listed):
        caption = f"The first {len(shown):,} of {caption} The JSON has them all."
    table = Table.of_records(
        f"{page.prefix}-treatments",
        caption,
        shown,
        [
            (Column("node", breaks=True), lambda each: Cell(each["node"])),
            (Column("operator"), lambda each: Cell(each["operator"])),
            (Column("computed in"), lambda each: Cell(each["precision"] or "not computed")),
            (Column("why", wide=True), lambda each: Cell(each["reason"])),
        ],
        tall=len(shown) > 20,
        filter="node, operator or why" if len(shown) > 20 else "",
    )
    page.add("treatments", "Node by node", table=table)


def _add_pipeline(page: ReportView) -> None:
    document = page.document
    passes = document["passes"]
    if not passes and not document["undone"]:
        return
    rows: dict[str, dict[str, Any]] = {}
    for each in passes:
        row = rows.setdefault(
            each["name"],
            {
                "name": each["name"],
                "runs": 0,
                "seconds": 0.0,
                "rewrites": 0,
                "nodes": 0,
                "bytes": 0,
            },
        )
        row["runs"] += 1
        row["seconds"] += each.get("seconds", 0.0)
        row["rewrites"] += sum(each["rewritten"].values())
        row["nodes"] += _change(each.get("nodes"))
        row["bytes"] += _change(each.get("weight_bytes"))
        row["left"] = sum(refused["count"] for refused in each["refused"])
        row["did"] = ", ".join(
            dict.fromkeys([*row.get("did", "").split(", "), *each["rewritten"]])
        ).strip(", ")
    for each in document["undone"]:
        row = rows.setdefault(each["name"], {"name": each["name"]})
        row["reason"] = each["reason"]
    table = Table.of_records(
        f"{page.prefix}-passes",
        "What each pass did, all its runs together.",
        list(rows.values()),
        [
            (Column("pass"), lambda each: Cell(each["name"])),
            (Column("came of it"), lambda each: Cell(_came_of(each))),
            (Column("rewrites", True), lambda each: cell(each.get("rewrites") or None, _plain)),
            (
                Column("nodes", True),
                lambda each: cell(each.get("nodes") or None, "{:+,.0f}".format),
            ),
            (Column("weights", True), lambda each: cell(each.get("bytes") or None, _signed_bytes)),
            (Column("time", True), lambda each: cell(each.get("seconds"), seconds_text)),
            (Column("left alone", True), lambda each: cell(each.get("left") or None, _plain)),
            (Column("rules"), lambda each: Cell(each.get("did", ""))),
        ],
    )
    last = {each["name"]: each["refused"] for each in passes}
    refusals = [{**refused, "pass": name} for name, found in last.items() for refused in found]
    left = Table.of_records(
        f"{page.prefix}-left",
        "What was left alone, and why.",
        refusals,
        [
            (Column("rule"), lambda each: Cell(each["rule"])),
            (Column("pass"), lambda each: Cell(each["pass"])),
            (Column("reason"), lambda each: Cell(each["reason"])),
            (Column("count", True), lambda each: cell(each["count"], _plain)),
            (
                Column("for example", breaks=True),
                lambda each: Cell(next(iter(each["nodes"]), ""), title=", ".join(each["nodes"])),
            ),
        ],
        tall=len(refusals) > 20,
        filter="rule, pass or reason" if len(refusals) > 20 else "",
    )
    page.add(
        "pipeline",
        "The pipeline",
        chart=run_charts.trail_chart(f"{page.prefix}-trail", passes, document["undone"])
        if passes
        else None,
        table=table,
        left=left if refusals else None,
    )


def _came_of(row: _Facts) -> str:
    if "reason" in row:
        return f"undone: {row['reason']}"
    return "changed the model" if row["rewrites"] else "found nothing to do"


def _change(pair: Sequence[int] | None) -> int:
    return 0 if pair is None else pair[1] - pair[0]


def _plain(value: float) -> str:
    return f"{value:,.0f}"


def _signed_bytes(value: float) -> str:
    return f"{'+' if value > 0 else '−'}{bytes_text(abs(int(value)))}"


def _circumstances(document: _Facts) -> Iterator[tuple[str, str]]:
    """The command, the pipeline, the machine and the versions."""
    yield from circumstances(document)
    yield "pipeline", document["pipeline"].replace(",", ", ")
    yield "time of the whole run", seconds_text(document["seconds"])
