"""What two compressions, or two distillations, came to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from onnxopt.report.formats import (
    bytes_text,
    decibels_text,
    percent_text,
    ratio_text,
    seconds_text,
)
from onnxopt.report.page.tables import Cell, Column, Table
from onnxopt.runtime.statistics import Ratio

__all__ = ["compared_stages", "compressed_rows", "distilled_rows"]

_Facts = Mapping[str, Any]
_Row = tuple[str, ...]


def compressed_rows(first: _Facts, second: _Facts) -> Iterator[_Row]:
    """What was measured of the results of two compressions: name, in A, in B, from A to B."""
    chosen = [_chosen(run) for run in (first, second)]
    yield "result", *(_name(stage) for stage in chosen), ""
    yield (
        "target",
        *(_target(run, stage) for run, stage in zip((first, second), chosen, strict=True)),
        "",
    )
    one, other = chosen
    if one is not None and other is not None:
        speeds = [_ratio(stage) for stage in (one, other)]
        yield "speed against its original", *map(ratio_text, speeds), _apart(*speeds)
        times = one["latency_seconds"], other["latency_seconds"]
        yield "latency of one run", *map(seconds_text, times), percent_text(*times)
    sizes = [
        run["bytes_before"] if stage is None else stage["bytes"]
        for run, stage in zip((first, second), chosen, strict=True)
    ]
    yield "file size", *map(bytes_text, sizes), percent_text(sizes[0], sizes[1])
    if any(stage is not None for stage in chosen):
        yield "signal to noise, worst output", *(_noise(stage) for stage in chosen), ""
        yield "decisions the same", *(_decisions(stage) for stage in chosen), ""
        scores = [_score(stage) for stage in chosen]
        if any(scores):
            yield "score", scores[0], scores[1], ""
    whole = first["seconds"], second["seconds"]
    yield "time of the whole run", *map(seconds_text, whole), percent_text(*whole)


def compared_stages(first: _Facts, second: _Facts) -> Table | None:
    """The stations of two compressions that have the same name, beside each other."""
    others = {stage["name"]: stage for stage in second["stages"]}
    pairs = [
        {"name": stage["name"], "a": stage, "b": others[stage["name"]]}
        for stage in first["stages"]
        if stage["name"] in others
    ]
    if not pairs:
        return None
    columns: list[tuple[Column, Callable[[_Facts], Cell]]] = [
        (Column("station", breaks=True), lambda pair: Cell(pair["name"]))
    ]
    for label, make in (
        ("size", lambda stage: Cell(bytes_text(stage["bytes"]), stage["bytes"])),
        ("speed", lambda stage: Cell(ratio_text(_ratio(stage)), stage["speed"]["median"])),
        ("S/N", lambda stage: Cell(_noise(stage), _decibels(stage))),
        ("decisions", lambda stage: Cell(_decisions(stage), _fraction(stage))),
    ):
        columns += [(Column(f"{label}, {side.upper()}", True), _of(side, make)) for side in "ab"]
    columns += [(Column(f"budget, {side.upper()}"), _of(side, _budget)) for side in "ab"]
    return Table.of_records(
        "compared-stages",
        "Stations of the same name; a target may have led to others.",
        pairs,
        columns,
    )


def distilled_rows(first: _Facts, second: _Facts) -> Iterator[_Row]:
    """What held-out samples say of two distillations: name, in A, in B, from A to B."""
    measures = [dict(_measures(run)) for run in (first, second)]
    for name in {**measures[0], **measures[1]}:
        one, other = (each.get(name, "") for each in measures)
        yield name, one, other, ""
    for label, field, text in (
        ("file size", "bytes_after", bytes_text),
        ("numbers trained", "parameters", "{:,}".format),
    ):
        a, b = first[field], second[field]
        yield label, text(a), text(b), percent_text(a, b)
    steps = [run["training"]["steps"] for run in (first, second)]
    yield "steps", *(f"{each:,}" for each in steps), percent_text(steps[0], steps[1])
    learned = [run["samples"] - run["held_out"] for run in (first, second)]
    yield "samples to learn from", *(f"{each:,}" for each in learned), percent_text(*learned)
    whole = first["seconds"], second["seconds"]
    yield "time of the whole run", *map(seconds_text, whole), percent_text(*whole)


def _measures(run: _Facts) -> Iterator[tuple[str, str]]:
    """Each measure of held-out samples, as it was before and is after."""
    before, after = run["before"], run["after"]
    if before.get("accuracy") is not None and after.get("accuracy") is not None:
        yield "accuracy", f"{before['accuracy']:.2%} → {after['accuracy']:.2%}"
    for name, share in after["agreement"].items():
        yield f"decides as the teacher ({name})", f"{before['agreement'][name]:.2%} → {share:.2%}"
    for name, level in after["sqnr_db"].items():
        levels = f"{_level(before['sqnr_db'][name])} → {_level(level)}"
        yield f"signal to noise against the teacher ({name})", levels


def _chosen(run: _Facts) -> _Facts | None:
    found: Sequence[_Facts] = [stage for stage in run["stages"] if stage["chosen"]]
    return found[0] if found else None


def _name(stage: _Facts | None) -> str:
    return "the original" if stage is None else str(stage["name"])


def _target(run: _Facts, stage: _Facts | None) -> str:
    target = run["target"]
    reached = stage is not None and stage["reached"]
    return f"{target['of']} at {target['share']:.0%}, {'reached' if reached else 'not reached'}"


def _ratio(stage: _Facts) -> Ratio:
    speed = stage["speed"]
    return Ratio(speed["median"], speed["low"], speed["high"])


def _apart(one: Ratio, other: Ratio) -> str:
    """Whether two speeds differ by more than their intervals allow for."""
    if one.low <= other.high and other.low <= one.high:
        return "within noise"
    return f"{other.median / one.median:.2f}x"


def _of(side: str, make: Callable[[_Facts], Cell]) -> Callable[[_Facts], Cell]:
    return lambda pair: make(pair[side])


def _decibels(stage: _Facts) -> float:
    level = stage["fidelity"]["sqnr_db"]
    return 1e9 if level is None else float(level)


def _noise(stage: _Facts | None) -> str:
    return "" if stage is None else _level(stage["fidelity"]["sqnr_db"])


def _level(level: float | None) -> str:
    """Decibels; None is no noise at all."""
    return "equal" if level is None else decibels_text(level)


def _fraction(stage: _Facts) -> float | None:
    agreement = stage["fidelity"]["agreement"]
    return None if agreement is None else float(agreement["fraction"])


def _decisions(stage: _Facts | None) -> str:
    fraction = None if stage is None else _fraction(stage)
    return "" if fraction is None else f"{fraction:.1%}"


def _score(stage: _Facts | None) -> str:
    score = None if stage is None else stage["fidelity"]["score"]
    return "" if score is None else f"{score['before']:.4g} → {score['after']:.4g}"


def _budget(stage: _Facts) -> Cell:
    return Cell("over" if stage["objection"] else "within", title=stage["objection"] or "")
