"""Whether it can pay at all to look for pruned channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.analysis.attributes import int_attribute
from onnxopt.analysis.values import constant_array
from onnxopt.channels.cells import GATES
from onnxopt.channels.integers import INTEGER_PRODUCTS, integer_weights
from onnxopt.channels.parameters import is_parameter, parameter_of
from onnxopt.model import let_go_of_pages
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Refuse

__all__ = ["may_be_pruned"]

#: So much of each row or column is looked at before all of it: weights are seldom zero.
_SAMPLE = 8
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SCALES = frozenset({"BatchNormalization", "InstanceNormalization"})
_CHOICES = frozenset({"Slice", "Gather", "Split"})


def may_be_pruned(graph: ir.Graph) -> bool:
    """Whether a graph has a weight or scale of zero, or reads some channels of a tensor only.

    Without one of these no channel is constant and none is unread. The answer costs a look at a
    part of each weight.
    """
    return any(map(_is_source, graph))


def _is_source(node: ir.Node) -> bool:
    try:
        return _says_so(node)
    finally:
        for value in node.inputs:
            let_go_of_pages(None if value is None else value.const_value)


def _says_so(node: ir.Node) -> bool:
    if not is_standard(node):
        return False
    if node.op_type in _CHOICES:
        value = node.inputs[0]
        return value is None or value.dtype is None or value.dtype.is_floating_point()
    if node.op_type in _SCALES:
        scale = constant_array(node.inputs[1])
        return scale is not None and bool((scale == 0).any())
    if node.op_type == "Mul":
        return any(
            array is not None and array.dtype.kind not in "iub" and bool((array == 0).any())
            for array in map(constant_array, node.inputs)
        )
    if node.op_type in GATES:
        return True
    integers = node.op_type in INTEGER_PRODUCTS
    if not integers and (node.op_type not in _PRODUCTS or not is_parameter(node.inputs[1])):
        return False
    try:
        stored = integer_weights(node) if integers else parameter_of(node, 1, "weights")
        weights = stored.levels
    except Refuse:
        return False
    if weights.ndim < 2:
        return False
    try:
        grouped = int_attribute(node, "group", 1) != 1 and weights.shape[1] != 1
    except Refuse:  # it is the function's caller who says
        return True
    return grouped or any(map(_has_zero_slice, (weights, np.swapaxes(weights, 0, 1))))


def _has_zero_slice(weights: NDArray[Any]) -> bool:
    """Whether some slice along the first axis is zero."""
    flat = weights.reshape(weights.shape[0], weights.shape[1], -1)
    dead = ~(flat[:, :_SAMPLE] != 0).any(axis=(1, 2))
    return bool(dead.any()) and not bool((flat[dead] != 0).any(axis=(1, 2)).all())
