"""QLinearConv and QLinearMatMul."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.analysis.values import constant_array, is_constant
from onnxopt.channels.integers import Grid, input_grid, integer_bias, integer_weights
from onnxopt.channels.operators.products import Plan, convolution, layer
from onnxopt.channels.tracer import Handler, Tracer
from onnxopt.rewriting import Refuse

__all__ = ["HANDLERS"]


def _grid(node: ir.Node) -> Grid:
    """The grid of the input, where that of the output is one, too.

    Raises:
        Refuse: When one of the two is not.
    """
    grid = input_grid(node)
    rest = [constant_array(value) for value in node.inputs[6:8]]
    if grid is None or any(array is None or array.size != 1 for array in rest):
        raise Refuse("quantized with several scales")
    return grid


def _conv(node: ir.Node, tracer: Tracer) -> None:
    grid, weights = _grid(node), integer_weights(node)
    convolution(node, tracer, weights, integer_bias(node, weights, grid), grid)


def _matmul(node: ir.Node, tracer: Tracer) -> None:
    if is_constant(node.inputs[0]) or not is_constant(node.inputs[3]):
        raise Refuse("a product of integers with weights that are not constant")
    grid, weights = _grid(node), integer_weights(node)
    if len(weights.stored.shape) != 2:
        raise Refuse("a batch of weights")
    rank = tracer.rank(node.inputs[0])
    plan = Plan(rank - 1, rank - 1, weights.stored.shape[1], rank)
    layer(node, tracer, weights, None, plan, grid)


HANDLERS: dict[str, Handler] = {"QLinearConv": _conv, "QLinearMatMul": _matmul}
