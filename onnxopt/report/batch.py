"""The report of a batch for people."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from onnxopt.report.formats import bytes_text, decibels_text, percent_text, seconds_text
from onnxopt.report.layout import heading, list_of, new_table
from onnxopt.runtime.statistics import Ratio

if TYPE_CHECKING:
    from onnxopt.batch import BatchReport, Row

__all__ = ["batch_lines"]

#: Of many models so many are shown; the summary has them all.
_MOST_SHOWN = 40


def batch_lines(report: BatchReport, summary: pathlib.Path) -> Iterator[RenderableType]:
    """What to print about a batch.

    Args:
        report: The report.
        summary: Where all of it is.
    """
    kept = sum(row.kept for row in report.rows)
    text = f"{len(report.rows):,} models, {len(report.failed):,} failed"
    if kept:
        text += f", {kept:,} finished before"
    workers = "1 worker" if report.workers == 1 else f"{report.workers:,} workers"
    yield Text(f"{report.models} → {report.output}", style="bold")
    yield Text(f"{text}, in {seconds_text(report.seconds)} with {workers}\n")
    good = [row for row in report.rows if row.state != "failed"]
    table = new_table(
        "model", "size", "", "latency", "speed", "noise", "undone", right=(1, 2, 3, 4, 5)
    )
    for row in good[:_MOST_SHOWN]:
        table.add_row(*_cells(row))
    if good:
        yield table
    if len(good) > _MOST_SHOWN:
        yield Text(f"and {len(good) - _MOST_SHOWN:,} more")
    if report.failed:
        yield heading("Failed")
        yield list_of([f"{row.model}: {row.error}" for row in report.failed])
    yield Text(f"\nAll of it is in {summary}.")


def _cells(row: Row) -> list[str]:
    before, after = row.bytes_before, row.bytes_after
    return [
        row.model,
        "" if after is None else bytes_text(after),
        "" if before is None or after is None else percent_text(before, after),
        "" if row.latency_after is None else seconds_text(row.latency_after),
        _speed(row),
        "" if row.sqnr_db is None else decibels_text(row.sqnr_db),
        ", ".join(row.undone),
    ]


def _speed(row: Row) -> str:
    if row.state == "unchanged":
        return "unchanged"
    if row.speed is None:
        return ""
    speed = Ratio(**row.speed)
    return "within noise" if speed.is_noise else f"{speed.median:.2f}x"
