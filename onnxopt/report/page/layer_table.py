"""The table of layers, of one run or of two beside each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxopt.report.formats import (
    NO_SIGNAL,
    bytes_text,
    count_text,
    percent_text,
    seconds_text,
)
from onnxopt.report.page.tables import Cell, Column, Table, cell

__all__ = ["compared_layers", "layer_table", "noise_cell"]

#: Characters that the markup of a cell takes beside its text.
_MARKUP = 22

_Facts = Mapping[str, Any]


def layer_table(name: str, layers: Sequence[_Facts], room: int) -> Table:
    """The layers of one run, or as many of those that take longest as there is room for."""
    total = sum(each.get("seconds") or 0.0 for each in layers)
    places = {id(each): index + 1 for index, each in enumerate(layers)}

    def share(each: _Facts) -> Cell:
        seconds = each.get("seconds")
        if seconds is None or not total:
            return Cell("")
        return Cell(f"{100 * seconds / total:.1f}", seconds)

    columns: list[tuple[Column, Callable[[_Facts], Cell]]] = [
        (Column("layer", breaks=True), lambda each: Cell(each["name"])),
        (
            Column("#", True, "place in the order of the run"),
            lambda each: Cell(str(places[id(each)]), places[id(each)]),
        ),
        (Column("operator"), lambda each: Cell(each.get("operator", ""))),
        (
            Column("runs as", help="what ONNX Runtime runs, where that is another operator"),
            lambda each: Cell(
                "" if each.get("kernel") == each.get("operator") else each.get("kernel", "")
            ),
        ),
        (Column("time", True, "median time in one run"), _number("seconds", seconds_text)),
        (Column("% of run", True), share),
        (
            Column("time before", True, "of the layer of this name in the original"),
            _number("seconds_before", seconds_text),
        ),
        (Column("precision"), lambda each: Cell(each.get("precision", ""))),
        (
            Column("S/N (dB)", True, "signal to noise of its output against the original's"),
            noise_cell,
        ),
        (Column("weights", True), _number("weight_bytes", _bytes)),
        (Column("weights before", True), _number("weight_bytes_before", _bytes)),
        (Column("zeros (%)", True, "share of its weights that are zero"), _percent("zeros")),
        (Column("MACs", True), _number("macs", _count)),
        (
            Column("channels removed", True),
            lambda each: _removed(each),
        ),
        (Column("why", wide=True), lambda each: Cell(each.get("reason", ""))),
    ]
    table = Table.of_records(
        name, "", layers, columns, filter="name, operator, precision or reason", tall=True
    )
    return _within(table, layers, room)


def compared_layers(
    name: str, first: Sequence[_Facts], second: Sequence[_Facts], room: int
) -> Table | None:
    """The layers of two runs by name; None where none has the same name."""
    others = {each["name"]: each for each in second}
    pairs = [
        {"name": each["name"], "a": each, "b": others[each["name"]]}
        for each in first
        if each["name"] in others
    ]
    if not pairs:
        return None

    def change(pair: _Facts) -> Cell:
        times = pair["a"].get("seconds"), pair["b"].get("seconds")
        if None in times:
            return Cell("")
        return Cell(percent_text(*times), times[1] - times[0])

    def of(side: str, make: Callable[[_Facts], Cell]) -> Callable[[_Facts], Cell]:
        return lambda pair: make(pair[side])

    columns: list[tuple[Column, Callable[[_Facts], Cell]]] = [
        (Column("layer", breaks=True), lambda pair: Cell(pair["name"])),
        (Column("operator"), of("b", lambda each: Cell(each.get("operator", "")))),
    ]
    for label, number, make in (
        ("time", True, _number("seconds", seconds_text)),
        ("precision", False, lambda each: Cell(each.get("precision", ""))),
        ("S/N (dB)", True, noise_cell),
        ("weights", True, _number("weight_bytes", _bytes)),
        ("zeros (%)", True, _percent("zeros")),
    ):
        columns.append((Column(f"{label}, A", number), of("a", make)))
        columns.append((Column(f"{label}, B", number), of("b", make)))
        if label == "time":
            columns.append((Column("time, A to B", True), change))
    table = Table.of_records(
        name, "", pairs, columns, filter="name, operator or precision", tall=True
    )
    return _within(table, [pair["a"] for pair in pairs], room)


def noise_cell(each: _Facts) -> Cell:
    """Signal to noise in dB; null is no noise at all."""
    if "sqnr_db" not in each:
        return Cell("")
    if each["sqnr_db"] is None:
        return Cell("equal", 1e9)
    if each["sqnr_db"] <= NO_SIGNAL:
        return Cell("none", NO_SIGNAL)
    return Cell(f"{each['sqnr_db']:.1f}", each["sqnr_db"])


def _within(table: Table, layers: Sequence[_Facts], room: int) -> Table:
    """The rows of the longest layers that there is room for, in their order."""
    sizes = [sum(len(each.text) + _MARKUP for each in row) for row in table.rows]
    order = sorted(
        range(len(layers)),
        key=lambda index: (
            -(layers[index].get("seconds") or 0.0),
            -(layers[index].get("weight_bytes") or 0),
        ),
    )
    kept: list[int] = []
    for index in order:
        room -= sizes[index]
        if room < 0:
            break
        kept.append(index)
    caption = f"{len(layers):,} layers."
    if len(kept) < len(layers):
        caption = (
            f"The {len(kept):,} of {len(layers):,} layers that take longest; the JSON has them all."
        )
    rows = [table.rows[index] for index in sorted(kept)]
    return dataclasses.replace(table, caption=caption, rows=rows)


def _number(field: str, text: Callable[[float], str]) -> Callable[[_Facts], Cell]:
    return lambda each: cell(each.get(field), text)


def _percent(field: str) -> Callable[[_Facts], Cell]:
    return lambda each: cell(each.get(field), lambda value: f"{100 * value:.1f}")


def _bytes(value: float) -> str:
    return bytes_text(int(value))


def _count(value: float) -> str:
    return count_text(int(value))


def _removed(each: _Facts) -> Cell:
    removed = each.get("channels_removed")
    if removed is None:
        return Cell("")
    kept = each.get("channels")
    return Cell(f"{removed:,}" if kept is None else f"{removed:,} of {removed + kept:,}", removed)
