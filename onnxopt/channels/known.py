"""Channels of one value that hold the same number everywhere, in every run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Known", "Mask", "Transfer", "moved", "nothing_known", "unchanged"]

Mask = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of the channels of a value.

    Attributes:
        mask: Which channels are constant: in the shape of the value, 1 for axes without channels.
        values: Their numbers, in the value's element type; anything where the mask is False.
    """

    mask: Mask
    values: NDArray[Any]

    def __post_init__(self) -> None:
        # What is not finite cannot be folded, so it counts as not known.
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(self.values.astype(np.float64))
        object.__setattr__(self, "mask", self.mask & finite)

    @property
    def nonzero(self) -> Mask:
        """Where a constant is not 0."""
        nonzero: Mask = self.mask & (self.values != 0)
        return nonzero

    @property
    def numbers(self) -> NDArray[np.float64]:
        """The constants as doubles; 0 where nothing is known."""
        return np.where(self.mask, self.values, 0).astype(np.float64)


#: What an operator makes of constant channels: from what is known of its inputs (None: nothing) to
#: what is known of its output.
Transfer = Callable[[Sequence[Known | None]], Known | None]


def moved(
    shapes: Sequence[tuple[int, ...]], move: Callable[[Sequence[NDArray[Any]]], NDArray[Any]]
) -> Transfer:
    """The transfer of an operator that only moves elements.

    Args:
        shapes: Shapes of the channels of each input.
        move: What it does to arrays in these shapes.
    """

    def transfer(known: Sequence[Known | None]) -> Known | None:
        given = [each for each in known if each is not None]
        if not given:
            return None
        dtype = given[0].values.dtype
        masks = [
            np.zeros(shape, np.bool_) if each is None else each.mask
            for each, shape in zip(known, shapes, strict=True)
        ]
        values = [
            np.zeros(shape, dtype) if each is None else each.values
            for each, shape in zip(known, shapes, strict=True)
        ]
        return Known(move(masks), move(values))

    return transfer


def nothing_known(known: Sequence[Known | None]) -> Known | None:
    """The transfer of an operator that keeps no channel constant."""
    return None


def unchanged(known: Sequence[Known | None]) -> Known | None:
    """The transfer of an operator that gives a constant back."""
    return known[0]
