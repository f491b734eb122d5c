"""Values whose elements are all the same number, and shapes that broadcasting keeps."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import constant, dims, rank, same_dim, same_shape
from onnxopt.op_traits import is_standard

__all__ = ["broadcasts_into", "holds_shape_of", "is_filled_with"]


def is_filled_with(value: ir.Value | None, number: float) -> bool:
    """Whether every element of the value is certainly this number, in every run.

    Known of constants, of ``ConstantOfShape`` of any shape, and of ``Expand`` of a constant. True
    of a constant without elements, since there is none that differs.
    """
    if value is None:
        return False
    tensor = constant(value)
    if tensor is not None:
        if tensor.dtype == ir.DataType.STRING:
            return False
        array = np.asarray(tensor.numpy())
        # The first element settles it for nearly every constant, without reading the others.
        return array.size == 0 or bool(array.flat[0] == number and (array == number).all())
    node = value.producer()
    if node is None or not is_standard(node):
        return False
    if node.op_type == "Expand":
        return constant(node.inputs[0]) is not None and is_filled_with(node.inputs[0], number)
    if node.op_type != "ConstantOfShape":
        return False
    fill = node.attributes.get("value")
    if fill is None:
        return number == 0
    return not fill.is_ref() and bool((fill.as_tensor().numpy() == number).all())


def holds_shape_of(shape: ir.Value | None, value: ir.Value) -> bool:
    """Whether ``shape`` certainly holds all dimensions of ``value``, as ``Shape(value)`` does."""
    node = shape.producer() if shape is not None else None
    if node is None or node.op_type != "Shape" or not is_standard(node):
        return False
    if "start" in node.attributes or "end" in node.attributes:
        return False
    source = node.inputs[0]
    return source is not None and (source is value or same_shape(source, value))


def broadcasts_into(operand: ir.Value | None, value: ir.Value) -> bool:
    """Whether broadcasting the two against each other certainly gives the shape of ``value``.

    That is so when each dimension of the operand, aligned at the end, is 1 or equal to the value's
    (ONNX, multidirectional broadcasting), or when the operand is made in the value's shape.
    """
    if operand is None:
        return False
    if operand is value or rank(operand) == 0:
        return True
    node = operand.producer()
    if node is not None and is_standard(node):
        if node.op_type == "ConstantOfShape" and holds_shape_of(node.inputs[0], value):
            return True
        if (
            node.op_type == "Expand"
            and rank(node.inputs[0]) == 0
            and holds_shape_of(node.inputs[1], value)
        ):
            return True
    narrow, wide = dims(operand), dims(value)
    if narrow is None or wide is None or len(narrow) > len(wide):
        return False
    aligned = wide[len(wide) - len(narrow) :]
    return all(one == 1 or same_dim(one, other) for one, other in zip(narrow, aligned, strict=True))
