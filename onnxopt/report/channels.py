"""The channels of a model, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType

from onnxopt.channels import ChannelGroup
from onnxopt.report.layout import heading, list_of, new_table

__all__ = ["channel_lines"]

#: So many layers of a group are named.
_NAMES = 3


def channel_lines(groups: Sequence[ChannelGroup]) -> Iterator[RenderableType]:
    """What to print about groups of channels."""
    yield heading("Channels that stand or fall together")
    if not groups:
        yield list_of(["no layer whose channels can be followed"])
        return
    columns = ("made by", "read by", "width", "constant", "unread", "removable", "pinned")
    table = new_table(*columns, right=(2, 3, 4, 5))
    for group in groups:
        reasons = [f"{count:,}: {reason}" for reason, count in group.pinned.items()]
        table.add_row(
            _names(group.writers),
            _names(group.readers),
            f"{group.width:,}",
            *(
                f"{count:,}" if count else ""
                for count in (group.constant, group.unread, group.removable)
            ),
            "; ".join(reasons),
        )
    yield table


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more
