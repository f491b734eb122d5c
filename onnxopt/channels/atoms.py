"""Channels that stand or fall together, as a union-find over numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

__all__ = ["Atoms", "Ids", "Pin"]

#: Numbers of channels, in the shape of the tensor they lie in, with 1 for every other axis.
Ids = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Pin:
    """Why channels cannot be removed.

    Attributes:
        reason: One phrase, without names.
        node: The node that holds them.
    """

    reason: str
    node: str


class Atoms:
    """Sets of channels that can only be removed together: an atom is such a set.

    Channels are numbered as they are made. `united` numbers the atoms densely, once everything is
    said.
    """

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._pins: list[tuple[Ids, Pin]] = []

    def make(self, count: int) -> Ids:
        """So many new channels, each an atom of its own."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def unite(self, left: Ids, right: Ids) -> None:
        """Let channels at the same place of two arrays of the same shape be one atom."""
        if left is right:
            return
        for one, other in zip(left.reshape(-1).tolist(), right.reshape(-1).tolist(), strict=True):
            first, second = self._find(one), self._find(other)
            if first != second:
                self._parents[max(first, second)] = min(first, second)

    def pin(self, ids: Ids, pin: Pin) -> None:
        """Say that channels must stay."""
        self._pins.append((ids.reshape(-1), pin))

    def united(self) -> tuple[Ids, list[Pin | None]]:
        """The atom of each channel, numbered from 0, and the first reason to keep each atom."""
        roots = np.array([self._find(each) for each in range(len(self._parents))], dtype=np.int64)
        distinct, numbers = np.unique(roots, return_inverse=True)
        pins: list[Pin | None] = [None] * len(distinct)
        for ids, pin in self._pins:
            for atom in numbers[ids].tolist():
                if pins[atom] is None:
                    pins[atom] = pin
        return numbers.astype(np.int64).reshape(-1), pins

    def _find(self, each: int) -> int:
        parents = self._parents
        while parents[each] != each:
            parents[each] = parents[parents[each]]
            each = parents[each]
        return each
