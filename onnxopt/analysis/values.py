"""What is known of a value before the model runs: constants, element types, shapes, readers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.model import proven_shape

__all__ = [
    "Dim",
    "constant",
    "constant_array",
    "constant_scalar",
    "dims",
    "has_one_use",
    "held_by_node",
    "is_constant",
    "is_float",
    "rank",
    "same_dim",
    "same_shape",
    "stated_dims",
    "static_shape",
]

#: A dimension: a number, a symbol (the same symbol is the same size within a model), or unknown.
Dim = int | str | None


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a value that is the same in every run, else None.

    Constants are initializers that cannot be overridden (not graph inputs) and outputs of
    ``Constant`` nodes that hold a dense tensor or numbers.
    """
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    return held_by_node(value.producer())


def held_by_node(node: ir.Node | None) -> ir.TensorProtocol | None:
    """The dense tensor or the numbers that a ``Constant`` node holds; None for any other node."""
    if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    attributes = list(node.attributes.values())
    if len(attributes) != 1 or attributes[0].is_ref():
        return None
    attribute = attributes[0]
    match attribute.name:
        case "value":
            return attribute.as_tensor()
        case "value_float" | "value_floats":
            return ir.tensor(np.array(attribute.value, dtype=np.float32))
        case "value_int" | "value_ints":
            return ir.tensor(np.array(attribute.value, dtype=np.int64))
    return None


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is the same in every run."""
    return constant(value) is not None


def constant_array(value: ir.Value | None, limit: int | None = None) -> np.ndarray[Any, Any] | None:
    """The numbers of a constant value, or None when it is none, or has more than ``limit``."""
    tensor = constant(value)
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return None
    if limit is not None and tensor.size > limit:
        return None
    return np.asarray(tensor.numpy())


def constant_scalar(value: ir.Value | None) -> float | int | bool | None:
    """The number in a constant of one element, of any rank, else None."""
    array = constant_array(value, limit=1)
    if array is None or array.size != 1:
        return None
    item = array.reshape(())[()]
    if array.dtype.kind not in "iufb":
        return float(item)  # bfloat16 and the 8-bit floats
    return item.item()  # type: ignore[no-any-return]


def has_one_use(value: ir.Value) -> bool:
    """Whether exactly one node input reads the value and it is no graph output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions, or None when unknown."""
    tensor = constant(value)
    if tensor is not None:
        return len(tensor.shape)
    shape = None if value is None else _tensor_shape(value)
    return None if shape is None else len(shape)


def dims(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """The shape with numbers, symbols and unknowns, or None when the rank is unknown.

    A symbol without a letter (``?``, ``-1``) is unknown, as is a negative number: exporters write
    them for any dynamic size, so that two of them need not be the same.
    """
    if value is None:
        return None
    tensor = constant(value)
    shape = tensor.shape if tensor is not None else _tensor_shape(value)
    return None if shape is None else tuple(map(_dim, shape))


def stated_dims(value: ir.Value) -> tuple[Dim, ...] | None:
    """The shape as the file states it, like `dims`; of a graph output that proves nothing."""
    return None if value.shape is None else tuple(map(_dim, value.shape))


def _tensor_shape(value: ir.Value) -> ir.Shape | None:
    """The shape of a tensor; onnx_ir gives sequences and optionals that of their elements."""
    is_tensor = value.type is None or isinstance(value.type, ir.TensorType | ir.SparseTensorType)
    return proven_shape(value) if is_tensor else None


def _dim(dim: int | ir.SymbolicDimProtocol) -> Dim:
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value if dim.value and any(map(str.isalpha, dim.value)) else None


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape when every dimension is a known number, else None."""
    known = dims(value)
    if known is None:
        return None
    numbers = tuple(dim for dim in known if isinstance(dim, int))
    return numbers if len(numbers) == len(known) else None


def same_dim(first: Dim, second: Dim) -> bool:
    """Whether two dimensions are certainly equal. Two unknowns are not."""
    return first is not None and first == second


def same_shape(first: ir.Value, second: ir.Value) -> bool:
    """Whether two values certainly have the same shape."""
    left, right = dims(first), dims(second)
    return (
        left is not None
        and right is not None
        and len(left) == len(right)
        and all(map(same_dim, left, right))
    )


def size(value: ir.Value) -> int | None:
    """Number of elements, or None when a dimension is not a known number."""
    shape = static_shape(value)
    return None if shape is None else math.prod(shape)


def is_float(value: ir.Value | None) -> bool:
    """Whether the element type is known to be a floating-point type."""
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()
