"""The report of a compression for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from onnxopt.report.formats import bytes_text, decibels_text, seconds_text
from onnxopt.report.layout import heading, list_of, new_table

if TYPE_CHECKING:
    from onnxopt.accuracy import Fidelity
    from onnxopt.compress import CompressReport

__all__ = ["compression_lines"]


def compression_lines(report: CompressReport) -> Iterator[RenderableType]:
    """What to print about a compression, from top to bottom."""
    yield Text(f"{report.source} → {report.target_path}", style="bold")
    result = report.result
    target = f"{report.target.share:.0%} of the original's {report.target.of}"
    if result is None:
        yield Text(f"The output is the input; the target was {target}\n")
    else:
        met = "met" if result.reached else "not met"
        yield Text(
            f"{result.speed.median:.2f} times faster, {report.bytes_before / result.bytes:.2f} "
            f"times smaller; the target of {target} was {met}, in {seconds_text(report.seconds)}\n"
        )
    table = new_table(
        "stage", "size", "latency", "speed", "true to the original", "budget", "time",
        right=(1, 2, 3, 6),
    )  # fmt: skip
    table.add_row(
        "the original", bytes_text(report.bytes_before), seconds_text(report.latency_before),
        "", "", "", "",
    )  # fmt: skip
    for stage in report.stages:
        table.add_row(
            f"{stage.name}{' (the result)' if stage.chosen else ''}",
            bytes_text(stage.bytes),
            seconds_text(stage.latency_seconds),
            f"{stage.speed.median:.2f}x",
            _truth(stage.fidelity),
            "over" if stage.objection else "within",
            seconds_text(stage.seconds),
        )
    yield table
    yield Text(
        f"Judged on {report.judged:,} of {report.samples:,} samples, which no stage learned from."
    )
    if report.notes:
        yield heading("Notes")
        yield list_of(report.notes)


def _truth(found: Fidelity) -> str:
    """The number that says most, as text."""
    if found.score is not None:
        return f"{found.score.before:.4g} → {found.score.after:.4g}"
    if found.agreement is not None:
        return f"{found.agreement.fraction:.1%} alike, {decibels_text(found.sqnr_db)}"
    return f"{decibels_text(found.sqnr_db)}, cosine {found.cosine:.4f}"
