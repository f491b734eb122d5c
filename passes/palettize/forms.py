"""The forms that the numbers of a weight can be brought into, and the bytes they take."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import onnx_ir as ir

from ..sparsify.layers import Layer
from .clusters import clustered
from .even import evenly_spaced

__all__ = ["FLOAT16", "UNCHANGED", "Form"]

Array = np.ndarray[Any, Any]

_SCALE_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Form:
    """What numbers a weight may have.

    Attributes:
        bits: Bits of an index into the palette, or of an integer; 16 and more are floats.
        even: Whether they are integers times a scale for each channel, instead of any numbers.
        group: Channels that share a palette; 0 for all.
    """

    bits: int
    even: bool = False
    group: int = 0

    def __str__(self) -> str:
        if self == UNCHANGED:
            return "unchanged"
        if self == FLOAT16:
            return "float16"
        names = {1: "binary", 2: "ternary"}
        if self.even:
            return f"{names.get(self.bits, f'{self.bits} bits')} per channel"
        return f"{self.bits} bits" + (f" per {self.group} channels" if self.group else "")

    def applied(self, layer: Layer) -> ir.TensorProtocol:
        """The weight in this form; as it is where it has numbers that the form cannot hold."""
        tensor = layer.value.const_value
        assert tensor is not None
        if self == UNCHANGED:
            return tensor
        matrix = layer.matrix()
        if self == FLOAT16:
            with np.errstate(over="ignore"):
                half = matrix.astype(np.float16).astype(np.float64)
            return layer.tensor(half) if np.isfinite(half).all() else tensor
        if self.even or self.group:
            return self._by_channel(layer, tensor)
        flat = clustered(matrix.reshape(-1), 1 << self.bits)
        return layer.tensor(flat.reshape(matrix.shape))

    def nbytes(self, layer: Layer) -> float:
        """About how many bytes the numbers other than 0 take, with palettes or scales."""
        numbers = np.count_nonzero(layer.matrix()) * self.bits / 8
        if self.bits >= FLOAT16.bits:
            return numbers
        channels = layer.shape[_channel_axis(layer)]
        if self.even:
            return numbers + channels * _SCALE_BYTES
        palettes = math.ceil(channels / self.group) if self.group else 1
        return numbers + palettes * _SCALE_BYTES * (1 << self.bits)

    def _by_channel(self, layer: Layer, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        weight = tensor.numpy().astype(np.float64)
        axis = _channel_axis(layer)
        moved = np.moveaxis(weight, axis, 0)
        rows = moved.reshape(len(moved), -1)
        if self.even:
            found = evenly_spaced(rows, self.bits)
        else:
            starts = range(0, len(rows), self.group)
            groups = [rows[start : start + self.group] for start in starts]
            found = np.concatenate(
                [clustered(each.reshape(-1), 1 << self.bits).reshape(each.shape) for each in groups]
            )
        result = np.moveaxis(found.reshape(moved.shape), 0, axis).astype(tensor.dtype.numpy())
        return ir.Tensor(np.ascontiguousarray(result), dtype=tensor.dtype, name=layer.name)


#: A weight as it is.
UNCHANGED = Form(32)
#: Floats of half the length.
FLOAT16 = Form(16)


def _channel_axis(layer: Layer) -> int:
    """The axis of the weight in memory along which its outputs are."""
    match layer.operator:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1
    rank = len(layer.shape)
    rows, columns = layer.layout.order[-2:]
    return rank - 1 if rows > columns else rank - 2
