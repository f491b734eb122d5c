"""Pieces of pages that are made from results."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["between_marks", "span"]

_END = "<!-- end -->"


def between_marks(text: str, name: str, content: str) -> str:
    """A page with other content between the marks of a name; as it was where there is none.

    Args:
        text: The page.
        name: What stands in the mark before it.
        content: Whole lines; empty for what is there already.
    """
    before, mark, rest = text.partition(f"<!-- {name} -->\n")
    known, _, after = rest.partition(_END)
    return f"{before}{mark}{content or known}{_END}{after}" if mark else text


def span(speeds: Sequence[float]) -> str:
    """The least and the greatest speed; one where they are written alike, none where none is."""
    if not speeds:
        return ""
    low, high = f"{min(speeds):.2f}x", f"{max(speeds):.2f}x"
    return low if low == high else f"{low} to {high}"
