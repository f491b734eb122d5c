"""How the input of a linear layer becomes the rows of a matrix product.

A linear layer computes, for each group, ``rows [R, K] @ weights [K, M]``. For a product of
matrices a row is a vector of the input; for a convolution it is the patch under the kernel (im2col,
Chellapilla et al. 2006), with channels before kernel positions, as ONNX's weights have them.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

__all__ = ["ConvolutionInput", "LayerInput", "ProductInput"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class LayerInput(abc.ABC):
    """The input of a linear layer as a matrix, or one for each group."""

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
    def row_size(self, array: Array) -> int:
        """Numbers in a row, those of all groups together; of an array that the layer could take."""

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
        if array.ndim == 0 or (self.transposed and array.ndim < 2):
            raise ValueError(f"an array of {array.ndim} dimensions is no matrix")
        turned = np.swapaxes(array, -1, -2) if self.transposed else array
        flat = turned.reshape(-1, turned.shape[-1])
        return np.asarray(flat[_spread(len(flat), most)][None])

    def row_size(self, array: Array) -> int:  # noqa: D102
        return int(array.shape[-2 if self.transposed else -1])

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

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = "NOTSET"
    groups: int = 1

    def rows(self, array: Array, most: int | None = None) -> Array:  # noqa: D102
        axes = len(self.kernel)
        if array.ndim != axes + 2 or array.shape[1] % self.groups:
            raise ValueError(f"shape {list(array.shape)} does not fit the convolution")
        pads = self._pads(array.shape[2:])
        padded = np.pad(array, [(0, 0), (0, 0), *pads]) if any(map(sum, pads)) else array
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        if any(size < need for size, need in zip(padded.shape[2:], reach, strict=True)):
            raise ValueError(f"shape {list(array.shape)} is smaller than the kernel")
        windows = sliding_window_view(padded, tuple(reach), axis=tuple(range(2, axes + 2)))
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

    def row_size(self, array: Array) -> int:  # noqa: D102
        return int(array.shape[1]) * math.prod(self.kernel)

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


def _spread(count: int, most: int | None) -> Array:
    """At most ``most`` of the first ``count`` numbers, evenly spread and the same every time."""
    if most is None or count <= most:
        return np.arange(count)
    return np.arange(most) * count // most
