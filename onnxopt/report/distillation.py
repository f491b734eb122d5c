"""The report of a distillation for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from onnxopt.report.formats import bytes_text, decibels_text, seconds_text
from onnxopt.report.layout import heading, list_of, new_table

if TYPE_CHECKING:
    from onnxopt.training.distillation import DistillReport

__all__ = ["distillation_lines"]

#: Of a long history so many evaluations are shown.
_MOST_SHOWN = 10


def distillation_lines(report: DistillReport) -> Iterator[RenderableType]:
    """What to print about a distillation, from top to bottom."""
    target = report.target or "(not written)"
    yield Text(f"{report.student} → {target}, taught by {report.teacher}", style="bold")
    training = report.training
    how = f"{training.steps:,} steps on {report.samples - report.held_out:,} samples"
    if training.resumed_at is not None:
        how += f" (went on from step {training.resumed_at:,})"
    yield Text(
        f"{report.parameters:,} numbers trained in {how}, in {seconds_text(report.seconds)}\n"
    )
    table = new_table("on held-out samples", "before", "after", right=(1, 2))
    before, after = report.before, report.after
    if after.accuracy is not None and before.accuracy is not None:
        table.add_row("accuracy", f"{before.accuracy:.2%}", f"{after.accuracy:.2%}")
    for name, share in after.agreement.items():
        table.add_row(
            f"decides as the teacher ('{name}')", f"{before.agreement[name]:.2%}", f"{share:.2%}"
        )
    for name, level in after.sqnr_db.items():
        table.add_row(
            f"noise against the teacher ('{name}')",
            decibels_text(before.sqnr_db[name]),
            decibels_text(level),
        )
    table.add_row("file size", bytes_text(report.bytes_before), bytes_text(report.bytes_after))
    yield table
    yield heading("What was compared")
    outputs = new_table("output", "taken for", "because", "loss")
    for plan in report.outputs:
        masked = f", where '{plan.mask}' is not 0" if plan.mask else ""
        outputs.add_row(plan.name, str(plan.kind), plan.reason, plan.loss + masked)
    yield outputs
    if report.task is not None:
        yield Text(f"Labels belong to '{report.task.output}' ({report.task.kind}).")
    if report.masked:
        yield Text(f"{report.masked:.1%} of the masked weights are zero, and stayed so.")
    yield heading("How it went")
    history = new_table("step", "loss", "held-out loss", "held-out", right=(0, 1, 2))
    every = max(1, -(-len(training.history) // _MOST_SHOWN))
    for index, each in enumerate(training.history):
        if index % every == 0 or each.step == training.best.step:
            best = " (best)" if each.step == training.best.step else ""
            loss = "" if each.train_loss != each.train_loss else f"{each.train_loss:.4g}"
            history.add_row(
                f"{each.step:,}", loss, f"{each.score.loss:.4g}", f"{each.score.text}{best}"
            )
    yield history
    if report.notes:
        yield heading("Notes")
        yield list_of(report.notes)
