"""What the page shows of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnxopt.report.formats import bytes_text, decibels_text, percent_text, ratio_text, seconds_text
from onnxopt.report.page.circumstances import circumstances
from onnxopt.report.page.report_view import ReportView, short_name
from onnxopt.report.page.tables import Cell, Column, Table, cell
from onnxopt.runtime.statistics import Ratio

__all__ = ["batch_view"]

_Facts = Mapping[str, Any]


def batch_view(document: _Facts, prefix: str, room: int) -> ReportView:
    """Look at the report of `batch`; ``room`` does not cut it: each model has a row."""
    del room
    rows = document["rows"]
    good = [row for row in rows if row["state"] != "failed"]
    title = f"{len(rows):,} models of {short_name(document['models'])}"
    page = ReportView(prefix, "batch", title, document)
    failed = len(rows) - len(good)
    page.lead.append(
        "All models were optimized." if not failed else f"{failed:,} of {len(rows):,} failed."
    )
    page.cards = list(_cards(good, failed))
    page.add("batch", "The models", table=_table(prefix, rows))
    page.add("again", "How to see this again", facts=list(_circumstances(document)))
    return page


def _cards(good: Sequence[_Facts], failed: int) -> Iterator[tuple[str, str, str, str]]:
    speeds = [speed for row in good if (speed := _ratio(row)) is not None]
    faster = sum(speed.is_faster for speed in speeds)
    remark = f"of {len(speeds):,} that were timed, beyond noise"
    yield "faster", f"{faster:,}", remark, "good" if faster else ""
    before = sum(row["bytes_before"] or 0 for row in good)
    after = sum(row["bytes_after"] or 0 for row in good)
    if before:
        sizes = f"{bytes_text(before)} → {bytes_text(after)}"
        yield "size together", percent_text(before, after), sizes, "good" if after < before else ""
    yield "failed", f"{failed:,}", "see the reasons below", "bad" if failed else ""


def _table(prefix: str, rows: Sequence[_Facts]) -> Table:
    return Table.of_records(
        f"{prefix}-models",
        "Latency is the median time of one run of the result.",
        rows,
        [
            (Column("model", breaks=True), lambda row: Cell(row["model"], link=row["page"])),
            (Column("state"), lambda row: Cell(row["state"])),
            (Column("size", True), lambda row: cell(row["bytes_after"], _bytes)),
            (Column("change", True), _change),
            (Column("latency", True), lambda row: cell(row["latency_after"], seconds_text)),
            (Column("speed", True), _speed),
            (Column("S/N (dB)", True), _noise),
            (Column("took", True), lambda row: cell(row["seconds"], seconds_text)),
            (Column("undone"), lambda row: Cell(", ".join(row["undone"]))),
            (Column("why it failed", wide=True), lambda row: Cell(row["error"])),
        ],
        filter="name, state or reason",
    )


def _change(row: _Facts) -> Cell:
    before, after = row["bytes_before"], row["bytes_after"]
    if not before or after is None:
        return Cell("")
    return Cell(percent_text(before, after), round(after / before, 6))


def _ratio(row: _Facts) -> Ratio | None:
    facts = row["speed"]
    return None if facts is None else Ratio(facts["median"], facts["low"], facts["high"])


def _speed(row: _Facts) -> Cell:
    speed = _ratio(row)
    return Cell("") if speed is None else Cell(ratio_text(speed), round(speed.median, 6))


def _noise(row: _Facts) -> Cell:
    return (
        Cell("") if row["sqnr_db"] is None else Cell(decibels_text(row["sqnr_db"]), row["sqnr_db"])
    )


def _bytes(value: float) -> str:
    return bytes_text(int(value))


def _circumstances(document: _Facts) -> Iterator[tuple[str, str]]:
    yield from circumstances(document)
    yield "workers", f"{document['workers']:,}"
    yield "time of the whole run", seconds_text(document["seconds"])
