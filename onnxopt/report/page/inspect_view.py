"""What the page shows of a model that was looked at and not run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onnxopt.report.formats import bytes_text, count_text
from onnxopt.report.page.circumstances import circumstances
from onnxopt.report.page.layer_charts import bytes_chart, layer_rows, zeros_chart
from onnxopt.report.page.report_view import ReportView, short_name
from onnxopt.report.page.tables import Cell, Column, Table, cell

__all__ = ["inspect_view"]

_Facts = Mapping[str, Any]


def inspect_view(document: _Facts, prefix: str, room: int) -> ReportView:
    """Look at the report of `inspect`."""
    page = ReportView(prefix, "inspect", short_name(document["model"]), document)
    zeros = document["zeros"]
    page.cards = [
        ("nodes", f"{document['nodes']:,}", f"{len(document['operators'])} operators", ""),
        (
            "parameters",
            count_text(document["parameters"]),
            bytes_text(document["weight_bytes"]),
            "",
        ),
        ("zeros", "none" if zeros is None else f"{zeros:.1%}", "of the parameters", ""),
    ]
    if document["macs_number"] is not None:
        page.cards.append(("MACs", count_text(document["macs_number"]), "of one run", ""))
    operators = Table.of_records(
        f"{prefix}-operators",
        f"{len(document['operators'])} operators.",
        document["operators"],
        [
            (Column("operator"), lambda each: Cell(each["name"])),
            (Column("nodes", True), lambda each: cell(each["count"], "{:,.0f}".format)),
            (
                Column("MACs", True, "multiply-accumulates of one run"),
                lambda each: Cell("" if each["macs"] == "0" else each["macs"], _leading(each)),
            ),
            (
                Column("of unknown cost", True),
                lambda each: cell(each["unknown_macs"] or None, _plain),
            ),
            (Column("weights", True), lambda each: cell(each["weight_bytes"] or None, _bytes)),
        ],
    )
    tensors = Table.of_records(
        f"{prefix}-tensors",
        f"{len(document['tensors']):,} weights.",
        document["tensors"][:2000],
        [
            (Column("weight", breaks=True), lambda each: Cell(each["name"])),
            (Column("read by"), lambda each: Cell(each["operator"])),
            (Column("type"), lambda each: Cell(each["dtype"])),
            (Column("shape"), lambda each: Cell(" × ".join(map(str, each["shape"])))),
            (Column("bytes", True), lambda each: cell(each["bytes"], _bytes)),
            (Column("zeros (%)", True), lambda each: cell(_share(each), "{:.1f}".format)),
        ],
        filter="name, operator or type",
        tall=True,
    )
    data = f"{prefix}-all-layers"
    rows, unit = layer_rows(document.get("layers", []))
    page.data[data] = rows
    charts = [
        chart
        for chart in (
            bytes_chart(f"{prefix}-bytes", data, rows, unit),
            zeros_chart(f"{prefix}-zeros", data, rows),
        )
        if chart is not None
    ]
    page.add(
        "inside",
        "What is inside",
        facts=list(_summary(document)),
        ports=[
            *(("input", port) for port in document["inputs"]),
            *(("output", port) for port in document["outputs"]),
        ],
        operators=operators,
        notes=document["notes"],
    )
    page.add(
        "weights",
        "Where the bytes are",
        charts=charts,
        tensors=tensors if document["tensors"] else None,
    )
    if document.get("channels"):
        page.add("channels", "Channels", table=_channels(document["channels"], prefix))
    page.add("again", "How to see this again", facts=list(circumstances(document)))
    return page


def _summary(document: _Facts) -> Iterator[tuple[str, str]]:
    yield "producer", document["producer"] or "not stated"
    opsets = ", ".join(f"{domain or 'ai.onnx'} {v}" for domain, v in document["opsets"].items())
    yield "opsets", f"{opsets} (IR version {document['ir_version']})"
    yield "MACs", document["macs"]
    yield (
        "precision",
        ", ".join(f"{name} {bytes_text(size)}" for name, size in document["precision"].items()),
    )
    yield from document["metadata"].items()


def _channels(groups: list[_Facts], prefix: str) -> Table:
    return Table.of_records(
        f"{prefix}-channels",
        "Channels that stand or fall together.",
        groups,
        [
            (Column("made by", breaks=True), lambda each: Cell(", ".join(each["writers"]))),
            (Column("read by", breaks=True), lambda each: Cell(", ".join(each["readers"]))),
            (Column("width", True), lambda each: cell(each["width"], _plain)),
            (Column("constant", True), lambda each: cell(each["constant"] or None, _plain)),
            (Column("unread", True), lambda each: cell(each["unread"] or None, _plain)),
            (Column("removable", True), lambda each: cell(each["removable"] or None, _plain)),
            (
                Column("pinned"),
                lambda each: Cell(
                    "; ".join(f"{count:,}: {why}" for why, count in each["pinned"].items())
                ),
            ),
        ],
        tall=len(groups) > 20,
    )


def _leading(operator: _Facts) -> float:
    """The number at the head of a formula, to sort by."""
    head = operator["macs"].partition("*")[0].partition(" ")[0]
    return float(head) if head.isdigit() else 0.0


def _share(tensor: _Facts) -> float | None:
    if tensor["zeros"] is None or not tensor["elements"]:
        return None
    return 100 * float(tensor["zeros"]) / float(tensor["elements"])


def _bytes(value: float) -> str:
    return bytes_text(int(value))


def _plain(value: float) -> str:
    return f"{value:,.0f}"
