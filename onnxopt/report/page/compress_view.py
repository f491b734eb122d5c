"""What the page shows of a compression: the stations of the road, and what each cost and gained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnxopt.report.formats import bytes_text, decibels_text, percent_text, ratio_text, seconds_text
from onnxopt.report.page.circumstances import circumstances
from onnxopt.report.page.distill_view import history_curves
from onnxopt.report.page.layer_section import add_layers
from onnxopt.report.page.layer_table import noise_cell
from onnxopt.report.page.report_view import ReportView, short_name
from onnxopt.report.page.run_charts import curve_charts, stage_chart, tradeoff_chart
from onnxopt.report.page.run_headline import blame
from onnxopt.report.page.tables import Cell, Column, Table, cell
from onnxopt.runtime.statistics import Ratio

__all__ = ["compress_view"]

_Facts = Mapping[str, Any]


def compress_view(document: _Facts, prefix: str, room: int) -> ReportView:
    """Look at the report of `compress`."""
    source = short_name(document["source"])
    target = short_name(document["target_path"]) if document["target_path"] else "not written"
    page = ReportView(prefix, "compress", f"{source} → {target}", document)
    stages = [_flat(stage) for stage in document["stages"]]
    chosen = next((stage for stage in stages if stage["chosen"]), None)
    page.lead = list(_lead(document, chosen))
    page.cards = list(_cards(document, chosen))
    page.tried = [
        {"label": stage["label"], "reason": stage["reason"], "treatments": {}} for stage in stages
    ]
    page.add(
        "road",
        "The road",
        chart=tradeoff_chart(f"{prefix}-tradeoff", stages),
        sizes=stage_chart(
            f"{prefix}-sizes",
            [
                {"name": "original", "bytes": document["bytes_before"]},
                *({**stage, "name": stage["label"]} for stage in stages),
            ],
        ),
        table=_table(f"{prefix}-stages", stages),
        notes=document["notes"],
    )
    add_layers(page, document.get("layers", []), room)
    curves = [
        {**curve, "plot": f"{stage['label']}: {curve['plot']}"}
        for stage, full in zip(stages, document["stages"], strict=True)
        if full["distillation"] is not None
        for curve in history_curves(full["distillation"]["training"]["history"])
    ]
    if curves:
        page.add("training", "Training", charts=curve_charts(prefix, curves))
    facts = [
        *circumstances(document),
        ("samples", f"{document['samples']:,}, of which {document['judged']:,} judged"),
        ("time of the whole run", seconds_text(document["seconds"])),
    ]
    page.add("again", "How to see this again", facts=facts)
    return page


def _flat(stage: _Facts) -> dict[str, Any]:
    """A station as the charts and tables of searches know one."""
    fidelity, speed = stage["fidelity"], stage["speed"]
    agreement, score = fidelity["agreement"], fidelity["score"]
    flat = {
        "label": stage["name"],
        "speed": speed["median"],
        "speed_low": speed["low"],
        "speed_high": speed["high"],
        "sqnr_db": fidelity["sqnr_db"],
        "bytes": stage["bytes"],
        "seconds": stage["seconds"],
        "latency_seconds": stage["latency_seconds"],
        "left": stage["left"],
        "within_budget": not stage["objection"],
        "chosen": stage["chosen"],
        "kept": not stage["objection"],
        "reached": stage["reached"],
        "changed": stage["changed"],
        "reason": stage["objection"],
        "samples": fidelity["samples"],
    }
    if agreement is not None:
        flat["agreement"] = agreement["fraction"]
    if score is not None:
        flat["score"] = score["after"]
    return flat


def _lead(document: _Facts, chosen: _Facts | None) -> Iterator[str]:
    if chosen is None:
        yield "No station stayed within the budget: the output is the input."
        return
    speed = Ratio(chosen["speed"], chosen["speed_low"], chosen["speed_high"])
    size = percent_text(document["bytes_before"], chosen["bytes"])
    gained = (
        "no speed that could be told from noise"
        if speed.is_noise
        else f"{speed.median:.2f} times the original's speed"
    )
    yield f"Gained: {gained}, size {size}."
    yield f"Cost: {_cost(chosen)}, on {chosen['samples']:,} samples that nothing learned from."
    target = document["target"]
    wanted = f"{target['of']} at {target['share']:.0%} of the original's"
    reached = "not reached"
    if chosen["reached"]:
        reached = "reached" if chosen["left"] <= target["share"] else "reached within 5 % of it"
    yield f"Target: {wanted}; {reached}, at {chosen['left']:.0%}."
    yield from blame(document.get("layers", []), {})
    over = [stage["name"] for stage in document["stages"] if stage["objection"]]
    if over:
        yield f"Over the budget: {', '.join(over)}."


def _cost(chosen: _Facts) -> str:
    text = f"{decibels_text(chosen['sqnr_db'])} signal to noise"
    if "agreement" in chosen:
        text += f", {chosen['agreement']:.1%} of decisions the same"
    return text


def _cards(document: _Facts, chosen: _Facts | None) -> Iterator[tuple[str, str, str, str]]:
    if chosen is None:
        yield "result", "the original", "nothing stayed within the budget", "bad"
        return
    speed = Ratio(chosen["speed"], chosen["speed_low"], chosen["speed_high"])
    state = "" if speed.is_noise else "good" if speed.median > 1 else "bad"
    value = "the same" if speed.is_noise else f"{speed.median:.2f}x"
    spread = f"{speed.low:.2f} to {speed.high:.2f}"
    yield "speed", value, ratio_text(speed) if speed.is_noise else spread, state
    sizes = document["bytes_before"], chosen["bytes"]
    less = "good" if sizes[1] < sizes[0] else "bad" if sizes[1] > sizes[0] else ""
    yield "size", percent_text(*sizes), " → ".join(map(bytes_text, sizes)), less
    times = document["latency_before"], chosen["latency_seconds"]
    yield "latency", seconds_text(times[1]), f"before: {seconds_text(times[0])}", state
    if "agreement" in chosen:
        remark = f"of decisions the same; {decibels_text(chosen['sqnr_db'])} signal to noise"
        yield "answers", f"{chosen['agreement']:.1%}", remark, "good"
    else:
        yield "answers", decibels_text(chosen["sqnr_db"]), "signal to noise", "good"


def _table(name: str, stages: Sequence[_Facts]) -> Table:
    numbered = [{**stage, "index": index} for index, stage in enumerate(stages)]
    return Table.of_records(
        name,
        "Stations of the road, in order.",
        numbered,
        [
            (Column("station"), lambda each: Cell(each["label"])),
            (
                Column("came of it"),
                lambda each: Cell(
                    "the result"
                    if each["chosen"]
                    else "changed nothing"
                    if not each["changed"]
                    else "within the budget"
                    if each["within_budget"]
                    else "over the budget"
                ),
            ),
            (Column("took", True), lambda each: cell(each["seconds"], seconds_text)),
            (Column("speed", True), lambda each: cell(each["speed"], "{:.2f}x".format)),
            (Column("latency", True), lambda each: cell(each["latency_seconds"], seconds_text)),
            (
                Column("size", True),
                lambda each: cell(each["bytes"], lambda size: bytes_text(int(size))),
            ),
            (
                Column("target at", True, "what is left of what the target is about"),
                lambda each: cell(each["left"], "{:.0%}".format),
            ),
            (Column("S/N (dB)", True), noise_cell),
            (
                Column("equal decisions", True),
                lambda each: cell(each.get("agreement"), "{:.1%}".format),
            ),
            (Column("own measure", True), lambda each: cell(each.get("score"), "{:.4g}".format)),
            (Column("why", wide=True), lambda each: Cell(each["reason"])),
        ],
    )
