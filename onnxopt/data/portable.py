"""Feeds that another process can read by itself, and only those it is to work on."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator

from onnxopt.data.feed import Feed

__all__ = ["Portable"]


class Portable(abc.ABC):
    """A source of feeds that may be sent to other processes instead of the feeds themselves."""

    @property
    @abc.abstractmethod
    def seekable(self) -> bool:
        """Whether it can be sent, and a feed be read without those before it."""

    @abc.abstractmethod
    def count(self) -> int | None:
        """How many feeds there are; None where that is not known before they are read."""

    @abc.abstractmethod
    def at(self, positions: Iterable[int]) -> Iterator[Feed]:
        """The feeds at ascending positions; ends with the last there is."""

    def place(self, number: int) -> str:
        """What the user knows a feed by, given its number, from 1."""
        return f"sample {number}"
