"""Tables of what a run did: outputs, models that were tried, stages, nodes and passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxopt.report.formats import bytes_text, decibels_text, seconds_text
from onnxopt.report.page.layer_table import noise_cell
from onnxopt.report.page.tables import Cell, Column, Table, cell

__all__ = [
    "output_table",
    "pass_table",
    "refusal_table",
    "region_table",
    "stage_table",
    "treatment_table",
    "tried_table",
]

_Facts = Mapping[str, Any]
#: So many nodes of the original are listed.
_MOST_NODES = 2000
#: A table of more rows scrolls by itself.
_TALL = 20


def output_table(name: str, document: _Facts) -> Table | None:
    """How true each output is to the original's; None where nothing was compared."""
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
                lambda each: Cell(decibels_text(each["snr_db"]), each["snr_db"] or 1e9),
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


def tried_table(name: str, tried: Sequence[_Facts]) -> Table:
    """Models that a search tried, each with a number that a chart can pick it by."""
    numbered = [{**each, "index": index} for index, each in enumerate(tried)]
    return Table.of_records(
        name,
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
        tall=len(tried) > _TALL,
    )


def region_table(name: str, regions: Sequence[_Facts]) -> Table:
    """Regions that a search decided on."""
    return Table.of_records(
        name,
        f"{len(regions):,} regions that were decided on.",
        regions,
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
        tall=len(regions) > _TALL,
    )


def stage_table(name: str, stages: Sequence[_Facts]) -> Table:
    """Stations of a longer road, in order."""
    return Table.of_records(
        name,
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


def treatment_table(name: str, nodes: Sequence[_Facts]) -> Table:
    """Every node of the original, and why it is in 8 bits or not."""
    listed = [each for each in nodes if each["operator"] != "Constant"]
    shown = listed[:_MOST_NODES]
    caption = f"{len(listed):,} nodes of the original, constants left out."
    if len(shown) < len(listed):
        caption = f"The first {len(shown):,} of {caption} The JSON has them all."
    return Table.of_records(
        name,
        caption,
        shown,
        [
            (Column("node", breaks=True), lambda each: Cell(each["node"])),
            (Column("operator"), lambda each: Cell(each["operator"])),
            (Column("computed in"), lambda each: Cell(each["precision"] or "not computed")),
            (Column("why", wide=True), lambda each: Cell(each["reason"])),
        ],
        tall=len(shown) > _TALL,
        filter="node, operator or why" if len(shown) > _TALL else "",
    )


def pass_table(name: str, passes: Sequence[_Facts], undone: Sequence[_Facts]) -> Table:
    """What each pass did, all its runs together."""
    rows = _by_pass(passes, undone)
    return Table.of_records(
        name,
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


def _by_pass(passes: Sequence[_Facts], undone: Sequence[_Facts]) -> dict[str, dict[str, Any]]:
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
    for each in undone:
        row = rows.setdefault(each["name"], {"name": each["name"]})
        row["reason"] = each["reason"]
    return rows


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


def refusal_table(name: str, passes: Sequence[_Facts]) -> Table | None:
    """What the last run of each pass left alone, and why; None where that is nothing."""
    last = {each["name"]: each["refused"] for each in passes}
    refusals = [{**refused, "pass": name} for name, found in last.items() for refused in found]
    if not refusals:
        return None
    return Table.of_records(
        name,
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
        tall=len(refusals) > _TALL,
        filter="rule, pass or reason" if len(refusals) > _TALL else "",
    )
