"""Tables of the page: what a cell shows, and what it is sorted by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["Cell", "Column", "Table", "cell"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What it shows.
        key: What it is sorted by where that is not the text; a missing number is empty and last.
        title: What a pointer shows beside.
        picked: Index of what a click on it shows, where it can be clicked.
        link: Another page that it leads to, if it heads a row.
    """

    text: str
    key: float | str | None = None
    title: str = ""
    picked: int | None = None
    link: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        label: Its header, with the unit.
        number: Whether it holds numbers, which stand to the right and are sorted by size.
        help: What the header means, where it does not say so itself.
        breaks: Whether long words may be broken, as names of layers must.
        wide: Whether it holds sentences, which need room.
    """

    label: str
    number: bool = False
    help: str = ""
    breaks: bool = False
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose headers sort it.

    Attributes:
        id: Its identifier.
        caption: What is in it.
        columns: Its columns.
        rows: Its rows; the first cell heads the row.
        filter: What the box above it filters by, such as ``name or operator``; none when empty.
        tall: Whether it scrolls by itself.
    """

    id: str
    caption: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Cell]]
    filter: str = ""
    tall: bool = False

    @classmethod
    def of_records(
        cls,
        name: str,
        caption: str,
        records: Sequence[Mapping[str, Any]],
        columns: Sequence[tuple[Column, Callable[[Mapping[str, Any]], Cell]]],
        **options: Any,
    ) -> Table:
        """A table of records, without the columns in which nothing is known."""
        whole = [[make(record) for _, make in columns] for record in records]
        kept = [
            index
            for index in range(len(columns))
            if index == 0 or any(row[index].text for row in whole)
        ]
        return cls(
            name,
            caption,
            tuple(columns[index][0] for index in kept),
            [[row[index] for index in kept] for row in whole],
            **options,
        )


def cell(value: float | None, text: Callable[[float], str]) -> Cell:
    """A number as it is shown; empty where it is not known."""
    return Cell("", None) if value is None else Cell(text(value), float(f"{value:.6g}"))
