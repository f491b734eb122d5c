"""QLinearConv and QLinearMatMul: products of integers with their scales as inputs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.analysis.values import constant_array, is_constant
from onnxopt.channels.known import Known
from onnxopt.channels.parameters import Parameter
from onnxopt.rewriting import Refuse

__all__ = ["INTEGER_PRODUCTS", "Grid", "input_grid", "integer_bias", "integer_weights"]

#: Where each operator has its bias; None where it takes none.
INTEGER_PRODUCTS: dict[str, int | None] = {"QLinearConv": 8, "QLinearMatMul": None}


@dataclasses.dataclass(frozen=True)
class Grid:
    """What integers stand for: ``scale * (integer - zero_point)``."""

    scale: float
    zero_point: int

    def numbers(self, given: Known | None) -> Known | None:
        """Constants as numbers instead of integers."""
        if given is None:
            return None
        values = (given.values.astype(np.float64) - self.zero_point) * self.scale
        return Known(given.mask, values)


def input_grid(node: ir.Node) -> Grid | None:
    """The grid of the first input of an integer product; None where it is not one constant."""
    scale, zero_point = (constant_array(value) for value in node.inputs[1:3])
    if scale is None or zero_point is None or scale.size != 1 or zero_point.size != 1:
        return None
    return Grid(float(scale.reshape(())), int(zero_point.reshape(())))


def integer_weights(node: ir.Node) -> Parameter:
    """The weights of an integer product.

    Raises:
        Refuse: When they are not constant, shared, or not understood.
    """
    value, scale, zero_point = node.inputs[3], *map(constant_array, node.inputs[4:6])
    if not is_constant(value) or scale is None or zero_point is None:
        raise Refuse("the weights are not constant")
    assert value is not None
    if len(value.uses()) != 1 or value.is_graph_output():
        raise Refuse("the weights are shared")
    axis = 0 if node.op_type == "QLinearConv" else 1
    parts: list[NDArray[Any]] = []
    for array in (scale, zero_point):
        if array.size != 1 and array.ndim != 1:
            raise Refuse("the weights are quantized by numbers that are not known")
        parts.append(array.reshape(()) if array.size == 1 else array)
    return Parameter(node, 3, parts[0].astype(np.float64), parts[1].astype(np.int64), axis)


def integer_bias(node: ir.Node, weights: Parameter, grid: Grid) -> Parameter | None:
    """The bias, which counts in products of the scales; None when there is none.

    Raises:
        Refuse: When it is not constant.
    """
    index = INTEGER_PRODUCTS[node.op_type]
    if index is None or len(node.inputs) <= index or node.inputs[index] is None:
        return None
    if not is_constant(node.inputs[index]):
        raise Refuse("the biases are not constant")
    assert weights.scale is not None
    step = weights.scale * grid.scale
    return Parameter(node, index, step, np.zeros((), np.int64), 0, beside=False)
