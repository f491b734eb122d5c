"""What the page shows of a distillation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnxopt.report.formats import bytes_text, decibels_text, percent_text, seconds_text
from onnxopt.report.page.circumstances import circumstances
from onnxopt.report.page.report_view import ReportView, short_name
from onnxopt.report.page.run_charts import curve_charts
from onnxopt.report.page.tables import Cell, Column, Table

__all__ = ["distill_view", "history_curves"]

_Facts = Mapping[str, Any]


def distill_view(document: _Facts, prefix: str, room: int) -> ReportView:
    """Look at the report of `distill`."""
    target = short_name(document["target"]) if document["target"] else "not written"
    page = ReportView(prefix, "distill", f"{short_name(document['student'])} → {target}", document)
    training = document["training"]
    before, after = document["before"], document["after"]
    learned = document["samples"] - document["held_out"]
    page.lead.append(
        f"Taught by {short_name(document['teacher'])}: {document['parameters']:,} numbers trained "
        f"in {training['steps']:,} steps on {learned:,} samples, judged on "
        f"{document['held_out']:,} others."
    )
    if training["stopped"]:
        page.lead.append(f"Ended before its time: {training['stopped']}.")
    rows = list(_rows(before, after))
    page.cards = [
        (name, result, f"before: {first}", _state(one, other))
        for name, first, result, one, other in rows[:3]
    ]
    sizes = document["bytes_before"], document["bytes_after"]
    page.cards.append(("size", percent_text(*sizes), " → ".join(map(bytes_text, sizes)), ""))
    page.add(
        "taught",
        "What came out",
        rows=[
            (name, first, result, _state(one, other)) for name, first, result, one, other in rows
        ],
        outputs=_outputs(document, prefix),
        masked=document["masked"],
        notes=document["notes"],
    )
    curves = curve_charts(prefix, list(history_curves(training["history"])))
    if curves:
        page.add("training", "How it went", charts=curves)
    page.add("again", "How to see this again", facts=list(_circumstances(document)))
    return page


def _rows(before: _Facts, after: _Facts) -> Iterator[tuple[str, str, str, float, float]]:
    """What is measured on held-out samples: name, before, after, and both as numbers."""
    one, other = before.get("accuracy"), after.get("accuracy")
    if one is not None and other is not None:
        yield "accuracy", f"{one:.2%}", f"{other:.2%}", one, other
    for name, share in after["agreement"].items():
        known = before["agreement"][name]
        yield f"decides as the teacher ({name})", f"{known:.2%}", f"{share:.2%}", known, share
    for name, level in after["sqnr_db"].items():
        known = before["sqnr_db"][name]
        infinite = 1e9
        yield (
            f"signal to noise against the teacher ({name})",
            decibels_text(known),
            decibels_text(level),
            infinite if known is None else known,
            infinite if level is None else level,
        )


def _state(before: float, after: float) -> str:
    return "good" if after > before else "bad" if after < before else ""


def _outputs(document: _Facts, prefix: str) -> Table:
    return Table.of_records(
        f"{prefix}-outputs",
        "How each output was compared with the teacher's.",
        document["outputs"],
        [
            (Column("output", breaks=True), lambda each: Cell(each["name"])),
            (Column("taken for"), lambda each: Cell(str(each["kind"]))),
            (Column("because", wide=True), lambda each: Cell(each["reason"])),
            (Column("loss"), lambda each: Cell(each["loss"])),
        ],
    )


def history_curves(history: Sequence[_Facts]) -> Iterator[_Facts]:
    """Losses in one picture, each measure of the held-out samples in one of its own."""

    def curve(name: str, plot: str, unit: str, y: list[Any]) -> dict[str, Any]:
        known = [(each["step"], value) for each, value in zip(history, y, strict=True)]
        kept = [(step, value) for step, value in known if value is not None]
        return {
            "name": name,
            "plot": plot,
            "unit": unit,
            "x": [step for step, _ in kept],
            "y": [value for _, value in kept],
        }

    if not history:
        return
    yield curve("training loss", "Loss", "", [each["train_loss"] for each in history])
    scores = [each["score"] for each in history]
    yield curve("held-out loss", "Loss", "", [score["loss"] for score in scores])
    if any(score.get("accuracy") is not None for score in scores):
        shares = [score.get("accuracy") for score in scores]
        percent = [None if share is None else 100 * share for share in shares]
        yield curve("accuracy", "Held-out samples: accuracy and decisions", "%", percent)
    for name in scores[-1]["agreement"]:
        percent = [100 * score["agreement"][name] for score in scores]
        title = "Held-out samples: accuracy and decisions"
        yield curve(f"decisions as the teacher's ({name})", title, "%", percent)
    for name in scores[-1]["sqnr_db"]:
        levels = [score["sqnr_db"][name] for score in scores]
        yield curve(f"signal to noise ({name})", "Held-out samples: signal to noise", "dB", levels)


def _circumstances(document: _Facts) -> Iterator[tuple[str, str]]:
    yield from circumstances(document)
    yield "time of the whole run", seconds_text(document["seconds"])
