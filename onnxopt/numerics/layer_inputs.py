"""How the input of a linear layer becomes the rows of a matrix product.

A linear layer computes, for each group, ``rows [R, K] @ weights [K, M]``. For a product of
matrices a row is a vector of the input; for a convolution it is the patch under the kernel (im2col,
Chellapilla et al. 2006), with channels before kernel positions, as ONNX's weights have them.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from typing import Any, ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

__all__ = ["ConvolutionInput", "LayerInput", "ProductInput", "some_outputs"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class LayerInput(abc.ABC):
    """The input of a linear layer as a matrix, or one for each group.

    Attributes:
        has_channels: Whether it has channels, as its second axis.
    """

    has_channels: ClassVar[bool] = False

    @abc.abstractmethod
    def rows(self, array: Array, most: int | None = None) -> Array:
        """The rows, [groups, R, K].

        Args:
            array: The layer's input.
            most: Give at most so many rows, evenly spread.

        Raises:
            ValueError: When the array is none that the layer could take.
        """

    @abc.abstractmethod
    def part(self, array: Array, most: int, seed: int) -> Array:
        """A copy of a part of the array that holds some of the rows.

        Args:
            array: The layer's input; where it `has_channels` with these in two axes, outer and
                inner ones.
            most: It should hold at most so many rows, spread over the array.
            seed: Which ones; a number of 64 bits.

        Raises:
            ValueError: When the array is none that the layer could take.
        """

    @abc.abstractmethod
    def rows_of_part(self, part: Array) -> Array:
        """The rows that a part holds, [groups, R, K]."""

    @abc.abstractmethod
    def row_size(self, shape: tuple[int, ...]) -> int:
        """Numbers in a row, those of all groups together.

        Args:
            shape: Of the input.

        Raises:
            ValueError: When it is none that the layer could take.
        """

    @abc.abstractmethod
    def columns(self, shape: tuple[int, ...]) -> int:
        """Numbers in a row of one group; see `row_size`."""

    @abc.abstractmethod
    def matrix(self, weights: Array) -> Array:
        """The layer's weights as [groups, K, M]."""

    @abc.abstractmethod
    def weights(self, matrix: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `matrix`: weights of the shape that the layer has them in."""


@dataclasses.dataclass(frozen=True)
class ProductInput(LayerInput):
    """Input of MatMul or Gemm.

    Attributes:
        transposed: The reduced axis is the second to last (Gemm with transA=1), not the last.
        weights_transposed: The weights are [M, K] (Gemm with transB=1), not [K, M].
    """

    transposed: bool = False
    weights_transposed: bool = False

    def rows(self, array: Array, most: int | None = None) -> Array:  # noqa: D102
        flat = self._flat(array)
        return np.asarray(flat[_spread(len(flat), most)][None])

    def part(self, array: Array, most: int, seed: int) -> Array:  # noqa: D102
        flat = self._flat(array)
        chosen = _spread(len(flat), most)
        return flat[chosen if len(chosen) == len(flat) else (chosen + seed % len(flat)) % len(flat)]

    def rows_of_part(self, part: Array) -> Array:  # noqa: D102
        return part[None]

    def row_size(self, shape: tuple[int, ...]) -> int:  # noqa: D102
        if len(shape) < (2 if self.transposed else 1):
            raise ValueError(f"an array of {len(shape)} dimensions is no matrix")
        return int(shape[-2 if self.transposed else -1])

    def columns(self, shape: tuple[int, ...]) -> int:  # noqa: D102
        return self.row_size(shape)

    def _flat(self, array: Array) -> Array:
        """The rows, [R, K]."""
        size = self.row_size(array.shape)
        turned = np.swapaxes(array, -1, -2) if self.transposed else array
        return turned.reshape(-1, size)

    def matrix(self, weights: Array) -> Array:  # noqa: D102
        turned = weights.T if self.weights_transposed else weights
        return np.asarray(turned.reshape(1, turned.shape[0], -1))

    def weights(self, matrix: Array, shape: tuple[int, ...]) -> Array:  # noqa: D102
        turned = matrix[0].T if self.weights_transposed else matrix[0]
        return np.asarray(turned.reshape(shape))


@dataclasses.dataclass(frozen=True)
class ConvolutionInput(LayerInput):
    """Input of Conv, of any number of spatial dimensions.

    Attributes:
        kernel: Size of the kernel, by spatial axis.
        strides: Steps, by spatial axis.
        dilations: Spacing of the kernel, by spatial axis.
        pads: Zeros before each spatial axis, then after each; not used with ``auto_pad``.
        auto_pad: ``NOTSET``, ``VALID``, ``SAME_UPPER`` or ``SAME_LOWER``.
        groups: Groups of channels.
    """

    has_channels: ClassVar[bool] = True
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = "NOTSET"
    groups: int = 1

    def rows(self, array: Array, most: int | None = None) -> Array:  # noqa: D102
        axes = len(self.kernel)
        self.places(array.shape)  # refuses other shapes
        pads = self._pads(array.shape[2:])
        padded = np.pad(array, [(0, 0), (0, 0), *pads]) if any(map(sum, pads)) else array
        windows = sliding_window_view(padded, self.reach, axis=tuple(range(2, axes + 2)))
        steps = tuple(slice(None, None, step) for step in self.strides)
        taps = tuple(slice(None, None, gap) for gap in self.dilations)
        windows = windows[(slice(None), slice(None), *steps, *taps)]
        places = (len(array), *windows.shape[2 : axes + 2])
        chosen = np.unravel_index(_spread(math.prod(places), most), places)
        # Advanced indices around a slice come first in the result: [R, C, *kernel].
        index: tuple[Any, ...] = (chosen[0], slice(None), *chosen[1:])
        patches = windows[index]
        patches = patches.reshape(len(patches), self.groups, -1)
        return np.ascontiguousarray(patches.transpose(1, 0, 2))

    def part(self, array: Array, most: int, seed: int) -> Array:
        """What the kernel reaches at runs of places along the last axis, with zeros beyond edges.

        Returns:
            [outer, inner, runs, *reach of all axes but the last, numbers in a run], in memory in
            the order of the array, for which neither the whole array is padded nor rows are laid
            out, which would take several times as long.
        """
        batch, outer, inner, *sizes = array.shape
        plan = _runs(self, (batch, outer * inner, *sizes), most)
        first = (seed >> 32) % plan.firsts
        begin = seed % plan.begins * self.strides[-1] - plan.pads[-1]
        if plan.pointwise:
            step = plan.step * self.strides[0]
            stop = first * self.strides[0] + (plan.runs - 1) * step + 1
            lines = array[0, :, :, first * self.strides[0] : stop : step]
            return lines[:, :, :, None, begin : begin + plan.width].copy(order="K")
        lengths = (*self.reach[:-1], plan.width)
        laid = np.zeros((outer, plan.runs, *lengths, inner), array.dtype)
        part = laid.transpose(0, laid.ndim - 1, *range(1, laid.ndim - 1))
        for run in range(plan.runs):
            left, starts = first + run * plan.step, [begin]
            for axis in range(len(plan.leading) - 2, -1, -1):
                left, place = divmod(left, plan.leading[axis + 1])
                starts.insert(0, place * self.strides[axis] - plan.pads[axis])
            source: list[slice] = []
            target: list[slice] = []
            for start, length, size in zip(starts, lengths, sizes, strict=True):
                low, high = max(start, 0), max(min(start + length, size), 0)
                source.append(slice(low, high))
                target.append(slice(low - start, high - start))
            there: Any = (slice(None), slice(None), run, *target)
            here: Any = (left, slice(None), slice(None), *source)
            part[there] = array[here]
        return part

    def rows_of_part(self, part: Array) -> Array:  # noqa: D102
        bare = dataclasses.replace(self, pads=(0,) * len(self.pads), auto_pad="VALID")
        channels = part.shape[0] * part.shape[1]
        return bare.rows(np.moveaxis(part.reshape(channels, *part.shape[2:]), 1, 0))

    def row_size(self, shape: tuple[int, ...]) -> int:  # noqa: D102
        self.places(shape)
        return int(shape[1]) * math.prod(self.kernel)

    def columns(self, shape: tuple[int, ...]) -> int:  # noqa: D102
        return self.row_size(shape) // self.groups

    @property
    def reach(self) -> tuple[int, ...]:
        """Numbers between the first and the last that the kernel reads, these included, by axis."""
        sizes = zip(self.kernel, self.dilations, strict=True)
        return tuple((kernel - 1) * gap + 1 for kernel, gap in sizes)

    def places(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """How many places the kernel takes, by spatial axis.

        Raises:
            ValueError: When the layer could not take an input of this shape.
        """
        if len(shape) != len(self.kernel) + 2 or shape[1] % self.groups:
            raise ValueError(f"shape {list(shape)} does not fit the convolution")
        found = []
        for size, pads, reach, stride in zip(
            shape[2:], self._pads(shape[2:]), self.reach, self.strides, strict=True
        ):
            if size + sum(pads) < reach:
                raise ValueError(f"shape {list(shape)} is smaller than the kernel")
            found.append((size + sum(pads) - reach) // stride + 1)
        return tuple(found)

    def matrix(self, weights: Array) -> Array:  # noqa: D102
        grouped = weights.reshape(self.groups, weights.shape[0] // self.groups, -1)
        return grouped.transpose(0, 2, 1)

    def weights(self, matrix: Array, shape: tuple[int, ...]) -> Array:  # noqa: D102
        return matrix.transpose(0, 2, 1).reshape(shape)

    def _pads(self, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
        axes = len(self.kernel)
        if self.auto_pad == "VALID":
            return [(0, 0)] * axes
        if self.auto_pad == "NOTSET":
            return [(self.pads[axis], self.pads[axis + axes]) for axis in range(axes)]
        pads = []
        for axis, size in enumerate(sizes):
            outputs = -(-size // self.strides[axis])
            reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            total = max(0, (outputs - 1) * self.strides[axis] + reach - size)
            less, more = total // 2, total - total // 2
            pads.append((less, more) if self.auto_pad == "SAME_UPPER" else (more, less))
        return pads


@dataclasses.dataclass(frozen=True)
class _Runs:
    """Runs of places of a kernel along the last axis, evenly spread over all other places.

    Attributes:
        runs: How many runs.
        step: From one to the next, in places before the last axis, those of all samples of a batch.
        firsts: The first may be at so many of these.
        begins: They may begin at so many places of the last axis.
        width: Numbers that the kernel reaches in a run, along the last axis.
        leading: Samples of the batch, and places by spatial axis but the last.
        pads: Zeros before each spatial axis.
        pointwise: Whether a run is a part of a line of the input, and runs are in even steps.
    """

    runs: int
    step: int
    firsts: int
    begins: int
    width: int
    leading: tuple[int, ...]
    pads: tuple[int, ...]
    pointwise: bool


@functools.lru_cache(4096)
def _runs(layer: ConvolutionInput, shape: tuple[int, ...], most: int) -> _Runs:
    """Runs with at most so many places together, about as many runs as places in each.

    Places of a kernel that is wider than a point share most of what they read with the next ones:
    half as many runs take a quarter less memory there.
    """
    *before, last = layer.places(shape)
    leading = (shape[0], *before)
    lines = math.prod(leading)
    side = math.isqrt(most) // (2 if max(layer.reach) > 1 else 1)
    runs = min(lines, max(1, side, most // last))
    length = min(last, max(1, most // runs))
    step = lines // runs
    pads = layer._pads(shape[2:])
    return _Runs(
        runs,
        step,
        lines - (runs - 1) * step,
        last - length + 1,
        (length - 1) * layer.strides[-1] + layer.reach[-1],
        leading,
        tuple(before for before, _ in pads),
        len(shape) == 4 and shape[0] == 1 and max(layer.reach) == 1 and not any(map(sum, pads)),
    )


def some_outputs(weights: Array, most: int = 256) -> Array:
    """The weights of some outputs, evenly spread, which stand for all where errors are compared.

    Args:
        weights: [groups, K, M].
        most: At most so many outputs are kept.
    """
    return np.ascontiguousarray(weights[:, :, _spread(weights.shape[2], most)])


def _spread(count: int, most: int | None) -> Array:
    """At most ``most`` of the first ``count`` numbers, evenly spread and the same every time."""
    if most is None or count <= most:
        return np.arange(count)
    return np.arange(most) * count // most
