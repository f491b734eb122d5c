"""How tables look, and how wide they may be."""

from __future__ import annotations

import os
import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["WIDTH", "console", "heading", "list_of", "new_table"]

#: Tables are made for this many columns, and take fewer where the terminal has fewer.
WIDTH = 100


def console() -> Console:
    """Stdout, at most `WIDTH` wide; plain text when that is no terminal or NO_COLOR is set."""
    plain = Console(highlight=False, emoji=False, markup=False)
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    plain.width = min(WIDTH, plain.width) if known else WIDTH
    return plain


def new_table(*columns: str, right: tuple[int, ...] = ()) -> Table:
    """A table without frames; the columns of these indices are numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", overflow="fold")
    return table


def heading(text: str) -> Text:
    """A line above a table or a list."""
    return Text(f"\n{text}", style="bold")


def list_of(items: list[str]) -> Table:
    """Sentences one below the other; long ones wrap beside their dash."""
    grid = Table.grid(padding=(0, 1))
    for item in items:
        grid.add_row("-", item)
    return grid
