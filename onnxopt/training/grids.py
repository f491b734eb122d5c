"""Grids of quantized numbers, and rounding to them with gradients.

A quantized tensor runs as floats that lie on its grid, so that gradients pass: straight through the
rounding where a number is inside the grid's range, and not at all outside (Bengio et al. 2013,
arXiv 1308.3432, with the clipping of Hubara et al. 2016, arXiv 1609.07061). Scales that train get
the gradient of LSQ (Esser et al. 2020, arXiv 1902.08153).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Refuse
from onnxopt.training.stored import stored

__all__ = ["FakeQuantize", "Quantize", "WeightGrid", "aligned", "range_of"]

_RANGES: dict[ir.DataType, tuple[int, int]] = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-(2**7), 2**7 - 1),
    ir.DataType.UINT8: (0, 2**8 - 1),
    ir.DataType.INT16: (-(2**15), 2**15 - 1),
    ir.DataType.UINT16: (0, 2**16 - 1),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
}


def range_of(dtype: ir.DataType) -> tuple[int, int]:
    """The lowest and highest number of a quantized type.

    Raises:
        Refuse: The type is no integer type of quantization.
    """
    if dtype not in _RANGES:
        raise Refuse(f"quantization to {dtype.name}")
    return _RANGES[dtype]


def aligned(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point in a shape that broadcasts to a tensor.

    Args:
        parameter: One number; one a channel; or, with a block size, one a block.
        x: The tensor.
        axis: Axis of channels or of blocks.
        block: How many elements along the axis share a number; 0 for channels.
    """
    if parameter.numel() == 1 and parameter.ndim <= 1:
        return parameter.reshape(())
    if block:
        whole = parameter.repeat_interleave(block, axis)
        return whole.narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if at == axis % x.ndim else 1 for at in range(x.ndim)])


def _reduced(gradient: Tensor, like: Tensor) -> Tensor:
    """Sum a gradient over the axes along which a tensor was broadcast."""
    return gradient.sum_to_size(like.shape)


class FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize: clip(round(x / scale), low, high) scale.

    The bounds are those of the type less the zero point: numbers, or tensors where zero points
    differ. Adding and taking away a zero point, a whole number, changes nothing else.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: float | Tensor, high: float | Tensor
    ) -> Tensor:
        """Round half to even, as ONNX does; the division is not replaced by a product."""
        ratio = x / scale
        keeps_ratio = ctx.needs_input_grad[1]
        level = torch.round(ratio) if keeps_ratio else torch.round_(ratio)
        clipped = torch.clamp(level, low, high)
        if keeps_ratio:
            # LSQ: round(x / s) - x / s inside, the bound outside.
            inside = clipped == level
            ctx.save_for_backward(inside, torch.where(inside, clipped - ratio, clipped), scale)
        elif ctx.needs_input_grad[0]:
            ctx.save_for_backward(clipped == level)
        return clipped.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Straight through, inside the range."""
        inside, *rest = ctx.saved_tensors
        of_x = torch.where(inside, gradient, 0.0) if ctx.needs_input_grad[0] else None
        of_scale = None
        if ctx.needs_input_grad[1]:
            slope, scale = rest
            of_scale = _reduced(gradient * slope, scale)
        return of_x, of_scale, None, None


class Quantize(torch.autograd.Function):
    """clip(round(x / scale) + zero, low, high), in float."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        """Round half to even, as ONNX does."""
        level = torch.round(x / scale) + zero
        inside = (level >= low) & (level <= high)
        ctx.save_for_backward(inside, x, scale)
        return torch.clamp_(level, low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Straight through, inside the range."""
        inside, x, scale = ctx.saved_tensors
        of_x = gradient * inside / scale if ctx.needs_input_grad[0] else None
        of_scale = None
        if ctx.needs_input_grad[1]:
            of_scale = _reduced(-gradient * inside * x / scale.square(), scale)
        return of_x, of_scale, None, None, None


@dataclasses.dataclass(frozen=True)
class WeightGrid:
    """The grid of a weight that a model holds as integers.

    Attributes:
        scale: Step by element, in the shape of the weight or one that broadcasts to it.
        zero: Zero point likewise.
        dtype: Type of the integers.
    """

    scale: NDArray[Any]
    zero: NDArray[np.int64]
    dtype: ir.DataType

    @classmethod
    def of(cls, value: ir.Value) -> WeightGrid | None:
        """The grid of a value that only DequantizeLinear reads, always with the same; else None."""
        tensor, uses = stored(value), value.uses()
        if tensor is None or tensor.dtype not in _RANGES or not uses:
            return None
        grids = set()
        for node, index in uses:
            if node.op_type != "DequantizeLinear" or not is_standard(node) or index != 0:
                return None
            settings = [node.attributes.get(name) for name in ("axis", "block_size")]
            numbers = tuple(None if each is None else each.as_int() for each in settings)
            grids.add((node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None, numbers))
        if len(grids) != 1:
            return None
        scale_value, zero_value, (axis, block) = grids.pop()
        scale, zero = stored(scale_value), stored(zero_value)
        if scale is None or (zero_value is not None and zero is None):
            return None
        if scale.dtype != ir.DataType.FLOAT:
            return None
        zeros = np.zeros(scale.shape.numpy(), np.int64) if zero is None else zero.numpy()
        x = torch.empty([int(size) for size in tensor.shape.numpy()], device="meta")
        along, size = 1 if axis is None else axis, block or 0
        scales = torch.from_numpy(np.array(scale.numpy(), np.float32))
        starts = torch.from_numpy(np.array(zeros, np.int64))
        placed = [aligned(each, x, along, size).numpy() for each in (scales, starts)]
        return cls(placed[0], placed[1], tensor.dtype)

    def dequantized(self, integers: NDArray[Any]) -> NDArray[np.float32]:
        """(q - zero) scale."""
        found = (integers.astype(np.int64) - self.zero).astype(np.float32) * self.scale
        return np.asarray(found, np.float32)

    def quantized(self, numbers: NDArray[Any], before: NDArray[Any]) -> NDArray[Any]:
        """The integers nearest to numbers; where a number did not change, its integer of before."""
        low, high = range_of(self.dtype)
        levels = np.rint(numbers / self.scale).astype(np.int64) + self.zero
        nearest = np.clip(levels, low, high)
        same = self.dequantized(before) == numbers
        return np.where(same, before.astype(np.int64), nearest).astype(self.dtype.numpy())
