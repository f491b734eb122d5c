"""What the page shows of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxopt.report.formats import decibels_text
from onnxopt.report.page.circumstances import circumstances
from onnxopt.report.page.layer_table import noise_cell
from onnxopt.report.page.reasons import add_reasons
from onnxopt.report.page.report_view import ReportView, short_name
from onnxopt.report.page.tables import Cell, Column, Table, cell

__all__ = ["check_view"]

_Facts = Mapping[str, Any]


def check_view(document: _Facts, prefix: str, room: int) -> ReportView:
    """Look at the report of `check`."""
    first, second = short_name(document["first"]), short_name(document["second"])
    if first == second:
        first, second = document["first"], document["second"]
    page = ReportView(prefix, "check", f"{first} and {second}", document)
    feeds = f"{document['feeds']} feed{'s' if document['feeds'] != 1 else ''}"
    agree = document["agree"]
    page.lead.append(
        f"The models agree, on {feeds}." if agree else f"The models differ, on {feeds}."
    )
    layer = document["layer"]
    if layer is not None:
        page.lead.append(f"First inner value that differs: {layer['value']} ({layer['reason']}).")
    page.lead.extend(document["interface"])
    worst = min(
        (each["snr_db"] for each in document["differences"] if each["snr_db"] is not None),
        default=None,
    )
    page.cards = [
        ("outputs", "agree" if agree else "differ", f"on {feeds}", "good" if agree else "bad"),
    ]
    if document["differences"]:
        page.cards.append(
            ("noise", decibels_text(worst), "signal to noise of the worst output", "")
        )
    page.add(
        "differences",
        "Outputs",
        table=_table(document, f"{prefix}-outputs") if document["differences"] else None,
        tolerance=document["tolerance"],
        layer=layer,
        notes=document["notes"],
    )
    if document.get("noise"):
        page.add("noise", "Layers", table=_noise(document["noise"], f"{prefix}-noise"))
    if document.get("attribution"):
        add_reasons(page, document["attribution"])
    page.add("again", "How to see this again", facts=list(circumstances(document)))
    return page


def _noise(layers: Sequence[_Facts], name: str) -> Table:
    """Signal to noise of the layers of a quantized model; in JSON null is no noise at all."""
    return Table.of_records(
        name,
        f"{len(layers):,} layers of the quantized model, the worst first.",
        layers,
        [
            (Column("layer", breaks=True), lambda each: Cell(each["layer"])),
            (Column("operator"), lambda each: Cell(each["operator"])),
            (Column("S/N (dB)", True), noise_cell),
            (
                Column("looked at", help="whole numbers are as fused kernels give them"),
                lambda each: Cell("whole numbers" if each["whole"] else "floats"),
            ),
            (Column("least", True), lambda each: cell(each["least"], "{:.3g}".format)),
            (Column("greatest", True), lambda each: cell(each["greatest"], "{:.3g}".format)),
            (Column("range from", True), lambda each: cell(each["low"], "{:.3g}".format)),
            (Column("to", True), lambda each: cell(each["high"], "{:.3g}".format)),
            (Column("why", wide=True), lambda each: Cell(each["reason"])),
        ],
        tall=len(layers) > 20,
        filter="layer, operator or why" if len(layers) > 20 else "",
    )


def _table(document: _Facts, name: str) -> Table:
    count = max(1, document["feeds"])
    outputs = max(1, len(document["differences"]) // count)
    rows = [
        {**each, "feed": index // outputs + 1} for index, each in enumerate(document["differences"])
    ]
    return Table.of_records(
        name,
        "How each output of each feed differs.",
        rows,
        [
            (Column("output", breaks=True), lambda each: Cell(each["output"])),
            (Column("feed", True), lambda each: cell(each["feed"], "{:.0f}".format)),
            (Column("verdict"), lambda each: Cell("agrees" if each["agrees"] else "differs")),
            (
                Column("largest difference", True),
                lambda each: cell(each["max_abs"], "{:.3g}".format),
            ),
            (
                Column("S/N", True),
                lambda each: Cell(decibels_text(each["snr_db"]), each["snr_db"] or 1e9),
            ),
            (Column("cosine", True), lambda each: cell(each["cosine"], "{:.6f}".format)),
            (
                Column("remark"),
                lambda each: Cell(
                    "the first is as far from itself" if each["own_noise"] else each["reason"]
                ),
            ),
        ],
        tall=len(rows) > 20,
        filter="output" if len(rows) > 20 else "",
    )
