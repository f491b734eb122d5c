"""The integer grid of a quantized weight, as its DequantizeLinear states it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute
from onnxopt.analysis.values import constant, constant_array
from onnxopt.rewriting import Refuse

__all__ = ["Grid", "grid_of"]

Array = np.ndarray[Any, Any]

#: Smallest and largest number of the types whose grid is understood.
_RANGES = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
}


@dataclasses.dataclass(frozen=True)
class Grid:
    """``real = (stored - zero) * scale``, element by element.

    Attributes:
        scale: Scales, of the weight's shape or broadcastable to it, as float64.
        zero: Zero points, likewise, as int64.
        lowest: Smallest number that can be stored.
        highest: Largest number that can be stored.
    """

    scale: Array
    zero: Array
    lowest: int
    highest: int

    def real(self, stored: Array) -> Array:
        """What stored numbers stand for, as float64."""
        return (stored.astype(np.int64) - self.zero) * self.scale

    def nearest(self, real: Array) -> Array:
        """The stored numbers that stand for the nearest reals, as int64."""
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.where(self.scale > 0, real / self.scale, 0.0)
        return np.clip(np.rint(steps).astype(np.int64) + self.zero, self.lowest, self.highest)


def grid_of(node: ir.Node) -> Grid:
    """The grid of the constant that a DequantizeLinear reads.

    Raises:
        Refuse: When it is not an integer grid, or not all of it is constant.
    """
    stored = constant(node.inputs[0])
    scale = constant_array(node.inputs[1])
    has_zero = len(node.inputs) > 2 and node.inputs[2] is not None
    zero = constant_array(node.inputs[2]) if has_zero else np.zeros((), np.int64)
    if stored is None or scale is None or zero is None:
        raise Refuse("its scale or zero point is not constant")
    if stored.dtype not in _RANGES:
        raise Refuse("its stored type is not an integer of up to 16 bits")
    shape = tuple(stored.shape.numpy())
    axis, block = int_attribute(node, "axis", 1), int_attribute(node, "block_size", 0)
    lowest, highest = _RANGES[stored.dtype]
    return Grid(
        _spread(scale.astype(np.float64), shape, axis, block),
        _spread(zero.astype(np.int64), shape, axis, block),
        lowest,
        highest,
    )


def _spread(array: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """Bring scales or zero points to a shape that broadcasts to the weight's."""
    if array.size == 1:
        return array.reshape(())
    axis %= len(shape)
    if block:
        spread = np.repeat(array, block, axis=axis)
        return spread[tuple(slice(size) for size in shape)]
    if array.shape != (shape[axis],):
        raise Refuse("its scale does not fit it")
    return array.reshape([-1 if index == axis else 1 for index in range(len(shape))])
