"""Weights and biases of layers, as they are stored: as numbers, or as integers with a scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.analysis.attributes import int_attribute
from onnxopt.analysis.values import constant_array, is_constant, is_float, rank
from onnxopt.channels.followers import AxisRef, Operand
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Refuse

__all__ = [
    "Parameter",
    "dequantizer",
    "is_parameter",
    "numbers_of",
    "parameter_of",
    "scalar_scale",
    "scales",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Parameter:
    """A constant of a layer.

    Attributes:
        node: The node that reads what is stored: the layer, or a DequantizeLinear in between.
        index: Its input.
        scale: For integers, what a step of one stands for: of one element, or one for each slice
            along ``axis``. None where numbers are stored.
        zero_point: The integer that stands for 0, of one element or as many as ``scale``.
        axis: The axis along which scales differ.
        beside: Whether scale and zero point are inputs of the node, behind the integers.
    """

    node: ir.Node
    index: int
    scale: NDArray[np.float64] | None = None
    zero_point: NDArray[np.int64] | None = None
    axis: int = 0
    beside: bool = True

    @property
    def stored(self) -> NDArray[Any]:
        """What is stored."""
        array = constant_array(self.node.inputs[self.index])
        assert array is not None
        return array

    @property
    def is_quantized(self) -> bool:
        """Whether integers are stored."""
        return self.scale is not None

    @property
    def has_scales(self) -> bool:
        """Whether each slice along ``axis`` has a scale of its own."""
        return self.scale is not None and self.scale.ndim == 1

    @property
    def levels(self) -> NDArray[Any]:
        """What is stored, with 0 for the number 0. A view of the numbers where none are shifted."""
        stored = self.stored
        if self.zero_point is None or not self.zero_point.any():
            return stored.astype(np.int32) if stored.dtype.kind not in "iuf" else stored
        shifted: NDArray[Any] = stored.astype(np.int64) - self._laid(self.zero_point)
        return shifted

    @property
    def numbers(self) -> NDArray[np.float64]:
        """What the layer reads."""
        levels = self.levels.astype(np.float64)
        return levels if self.scale is None else levels * self._laid(self.scale)

    def _laid(self, each: NDArray[Any]) -> NDArray[Any]:
        """Numbers by slice, in a shape to combine with what is stored."""
        if each.ndim == 0:
            return each
        shape = [1] * self.stored.ndim
        shape[self.axis] = -1
        return each.reshape(shape)


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes a value, if one does."""
    node = None if value is None else value.producer()
    is_one = node is not None and node.op_type == "DequantizeLinear" and is_standard(node)
    return node if is_one else None


def is_parameter(value: ir.Value | None) -> bool:
    """Whether a value is a constant, or made of one by DequantizeLinear."""
    node = dequantizer(value)
    return is_constant(value) or (node is not None and is_constant(node.inputs[0]))


def parameter_of(node: ir.Node, index: int, what: str) -> Parameter:
    """A constant input of a layer that it alone reads, or that can be copied for it.

    Args:
        node: The layer.
        index: Its input, which is there.
        what: What to call it in a refusal.

    Raises:
        Refuse: When it is not constant, or in integers of a kind that is not understood.
    """
    value = node.inputs[index]
    source = dequantizer(value)
    if source is None or value is None:
        if value is None or not is_constant(value):
            raise Refuse(f"the {what} are not constant")
        if not is_float(value):
            raise Refuse(f"the {what} are no floating-point numbers")
        return Parameter(node, index)
    if not is_constant(source.inputs[0]):
        raise Refuse(f"the {what} are not constant")
    if len(value.uses()) != 1 or value.is_graph_output():
        raise Refuse(f"the {what} are shared")
    return _stored_by(source, what)


def _stored_by(source: ir.Node, what: str) -> Parameter:
    """What a DequantizeLinear of a constant makes numbers of."""
    if int_attribute(source, "block_size", 0):
        raise Refuse(f"the {what} are quantized in blocks")
    scale = constant_array(source.inputs[1])
    zero = source.inputs[2] if len(source.inputs) > 2 else None
    zero_point = np.zeros((), np.int64) if zero is None else constant_array(zero)
    if scale is None or zero_point is None or scale.ndim > 1:
        raise Refuse(f"the {what} are quantized by numbers that are not known")
    if scale.size == 1:
        scale = scale.reshape(())
    if zero_point.size == 1:
        zero_point = zero_point.reshape(())
    axis = int_attribute(source, "axis", 1)
    axes = rank(source.inputs[0])
    assert axes is not None
    if zero_point.dtype.kind not in "iu":
        zero_point = zero_point.astype(np.float64)  # narrow integers that numpy does not have
    return Parameter(
        source,
        0,
        scale.astype(np.float64),
        zero_point.astype(np.int64),
        axis % axes if axes else 0,
    )


def numbers_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The numbers of a constant, or of integers that DequantizeLinear makes numbers of.

    Returns:
        In the element type of the value; None when they are not constant, or not understood.
    """
    source = dequantizer(value)
    if source is None or value is None or value.dtype is None:
        return constant_array(value)
    if not is_constant(source.inputs[0]):
        return None
    try:
        return _stored_by(source, "constants").numbers.astype(value.dtype.numpy())
    except Refuse:
        return None


def scales(parameter: Parameter, made: AxisRef) -> Iterator[Operand]:
    """What goes with slices of quantized weights."""
    if parameter.scale is not None and parameter.beside:
        for place, array in enumerate((parameter.scale, parameter.zero_point), 1):
            if array is not None and array.ndim:
                yield Operand(parameter.node, parameter.index + place, 0, made)


def scalar_scale(value: ir.Value) -> float | None:
    """The one scale of a computed value that DequantizeLinear makes; None where there is none."""
    source = dequantizer(value)
    scale = None if source is None else constant_array(source.inputs[1])
    return float(scale.reshape(())) if scale is not None and scale.size == 1 else None
