"""An input in parts that can be covered one by one: patches, tokens, spans of time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Segments", "baseline_of", "segments_of"]

Array = NDArray[Any]
#: So many parts at most: what they take grows with their number, and a person sees no more.
_MOST = 49
#: An axis of at most so many is one of colours.
_COLOURS = 4


@dataclasses.dataclass(frozen=True)
class Segments:
    """The parts of one sample of an input.

    Attributes:
        input: Name of the input.
        labels: For each element of a sample, the number of its part; the shape of the sample.
        grid: Rows and columns of parts, row by row; one row for parts that lie in a line.
        baseline: What a covered part is replaced by, element by element.
        colours: Axis of colours of an image, else None.
    """

    input: str
    labels: NDArray[np.intp]
    grid: tuple[int, int]
    baseline: Array
    colours: int | None = None

    @property
    def count(self) -> int:
        """How many parts there are."""
        return self.grid[0] * self.grid[1]

    def covered(self, sample: Array, kept: NDArray[np.bool_]) -> Array:
        """Copies of a sample with parts covered.

        Args:
            sample: One sample, with a leading axis of length 1.
            kept: For each copy, whether each part is kept: [copies, parts].

        Returns:
            The copies, [copies, ...].
        """
        return np.where(kept[:, self.labels], sample, self.baseline)


def segments_of(name: str, sample: Array, baseline: Array) -> Segments:
    """Part a sample along the axes on which it is largest.

    Args:
        name: Name of the input.
        sample: One sample, with a leading axis of length 1.
        baseline: What covers it.
    """
    shape = sample.shape[1:]
    colours = _colour_axis(shape)
    spatial = [axis for axis in range(len(shape)) if axis != colours]
    across = sorted(sorted(spatial, key=lambda axis: -shape[axis])[:2])
    if len(shape) < 2 or len(spatial) < 2 or colours is None:
        across = [max(spatial, key=lambda axis: shape[axis])] if spatial else []
    counts = _counts([shape[axis] for axis in across])
    labels = np.zeros(shape, np.intp)
    for axis, count in zip(across, counts, strict=True):
        along = np.arange(shape[axis]) * count // shape[axis]
        labels = labels * count + along.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    grid = (counts[0], counts[1]) if len(counts) == 2 else (1, counts[0] if counts else 1)
    return Segments(name, labels, grid, baseline, None if len(counts) < 2 else colours)


def baseline_of(samples: Sequence[Array]) -> Array:
    """What stands for nothing: the mean of numbers over samples, the commonest of whole numbers.

    Of an image it is the mean of each colour, so that no picture shines through.

    Args:
        samples: Samples of one shape, each with a leading axis of length 1.
    """
    stacked = np.concatenate(list(samples))
    if stacked.dtype.kind != "f":
        values, counts = np.unique(stacked, return_counts=True)
        return np.full(stacked.shape[1:], values[counts.argmax()], stacked.dtype)
    colours = _colour_axis(stacked.shape[1:])
    axes = tuple(axis for axis in range(stacked.ndim) if colours is None or axis != colours + 1)
    mean = stacked.mean(axis=axes, keepdims=True, dtype=np.float64)
    return np.broadcast_to(mean[0], stacked.shape[1:]).astype(stacked.dtype)


def _colour_axis(shape: Sequence[int]) -> int | None:
    """The axis of colours of an image: the first or the last of three, if it is short enough."""
    if len(shape) != 3:
        return None
    for axis, others in ((0, shape[1:]), (2, shape[:2])):
        if shape[axis] <= _COLOURS < min(others):
            return axis
    return None


def _counts(sizes: Sequence[int]) -> list[int]:
    """Parts along each axis, about as long in one direction as in the other."""
    if len(sizes) < 2:
        return [min(size, _MOST) for size in sizes]
    side = math.sqrt(sizes[0] * sizes[1] / _MOST)
    short = min(range(2), key=lambda index: sizes[index])
    counts = [0, 0]
    counts[short] = max(1, min(sizes[short], round(sizes[short] / side)))
    counts[1 - short] = max(1, min(sizes[1 - short], _MOST // counts[short]))
    return counts
