"""Ways of writing a vector of numbers; `narrow` and `palette` are two of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from .builder import Array, DecoderBuilder

__all__ = ["Numbers", "as_bits", "as_they_are"]


@dataclasses.dataclass(frozen=True)
class Numbers:
    """One way of writing a vector of numbers.

    Attributes:
        code: Its name; empty where the numbers are written as they are.
        nbytes: About how many bytes it takes, with its nodes.
        write: Store the numbers and give them in a shape, exactly as they were.
    """

    code: str
    nbytes: int
    write: Callable[[DecoderBuilder, Sequence[int]], ir.Value]


def as_they_are(numbers: Array) -> Numbers:
    """Store the numbers in their own type."""
    return Numbers("", numbers.nbytes, lambda builder, shape: builder.store(numbers.reshape(shape)))


def as_bits(array: Array) -> Array:
    """The same bytes as unsigned integers, so that -0.0 differs from 0.0 and NaN equals itself."""
    array = np.ascontiguousarray(array)
    return array.view(f"u{array.itemsize}")
