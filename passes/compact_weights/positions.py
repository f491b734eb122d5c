"""Ways of telling where the numbers stand that are stored; everywhere else is one background.

`bitmask`, `gaps` and `elias_fano` are three of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir

from .builder import Array, DecoderBuilder

__all__ = ["Positions", "Sparse"]


@dataclasses.dataclass(frozen=True)
class Sparse:
    """A vector most of whose elements are the same.

    Attributes:
        flat: All elements.
        background: The frequent one, as a vector of one element.
        where: Indices of the others, increasing, as int64.
    """

    flat: Array
    background: Array
    where: Array


@dataclasses.dataclass(frozen=True)
class Positions:
    """One way of telling where the stored numbers stand.

    Attributes:
        code: Its name.
        stored: The numbers to store, in order: those of `Sparse.where`, and what the code needs
            besides.
        expand: From the stored numbers, as a value in the graph, to the whole vector.
    """

    code: str
    stored: Array
    expand: Callable[[DecoderBuilder, ir.Value], ir.Value]
