"""Rules for the contents of integer tensors of rank 0 and 1, one an operator.

A rule gives the contents of one output of a node from the contents and shapes of its inputs, or
None when it cannot tell. It need not tell in runs that fail (a division by 0, an index out of
bounds). Operators that work on elements one by one do so with `symbolic_arithmetic`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.analysis import symbolic_arithmetic as arithmetic
from onnxopt.analysis.attributes import int_attribute, ints_attribute
from onnxopt.analysis.expressions import ONE, ZERO, Expression, number, product
from onnxopt.analysis.symbolic_values import (
    FAR,
    INTEGER_TYPES,
    MOST_ELEMENTS,
    Integers,
    Questions,
)

__all__ = ["INTEGER_OPERATORS", "integer_rule"]

IntegerRule = Callable[[ir.Node, int, Questions], Integers | None]
#: What happens to single elements.
_Function = Callable[..., Expression]

_INT64, _BOOL = ir.DataType.INT64, ir.DataType.BOOL


def integer_rule(node: ir.Node) -> IntegerRule | None:
    """The rule for a node of the standard domain, or None when its operator has none."""
    return _RULES.get(node.op_type)


# Where integers come from


def _shape(node: ir.Node, _: int, ask: Questions) -> Integers | None:
    [shape] = ask.shapes(node.inputs[0])
    if shape is None:
        return None
    start = int_attribute(node, "start", 0)
    end = int_attribute(node, "end", len(shape))
    return Integers.vector(shape[slice(start, end)], _INT64)


def _size(node: ir.Node, _: int, ask: Questions) -> Integers | None:
    [shape] = ask.shapes(node.inputs[0])
    return None if shape is None else Integers.scalar(product(shape), _INT64)


def _constant_of_shape(node: ir.Node, _: int, ask: Questions) -> Integers | None:
    [shape] = ask.integers(node.inputs[0])
    if shape is None or shape.constants is None or len(shape.elements) > 1:
        return None
    attribute = node.attributes.get("value")
    if attribute is None or attribute.is_ref():
        return None
    filling = attribute.as_tensor()
    if filling.dtype not in INTEGER_TYPES:
        return None
    element = number(int(filling.numpy().reshape(-1)[0]))
    if not shape.elements:
        return Integers.scalar(element, filling.dtype)
    length = shape.constants[0]
    return _vector([element] * length, filling.dtype) if 0 <= length <= MOST_ELEMENTS else None


def _range(node: ir.Node, _: int, ask: Questions) -> Integers | None:
    inputs = ask.integers(*node.inputs)
    bounds = [each.constants[0] for each in inputs if each is not None and each.constants]
    if len(bounds) != 3 or inputs[0] is None or bounds[2] == 0:
        return None
    numbers = range(*bounds)
    if len(numbers) > MOST_ELEMENTS:
        return None
    return Integers.vector(map(number, numbers), inputs[0].dtype)


# Selection and rearrangement


def _identity(node: ir.Node, _: int, ask: Questions) -> Integers | None:
    return ask.integers(node.inputs[0])[0]


def _gather(node: ir.Node, _: int, ask: Questions) -> Integers | None:
    data, indices = ask.integers(*node.inputs)
    if data is None or data.is_scalar or indices is None or indices.constants is None:
        return None
    length = len(data.elements)
    if not all(-length <= index < length for index in indices.constants):
        return None
    elements = tuple(data.elements[index] for index in indices.constants)
    return Integers(elements, indices.is_scalar, data.dtype)


def _slice(node: ir.Node, _: int, ask: Questions) -> Integers | None:
    [data] = ask.integers(node.inputs[0])
    if data is None or data.is_scalar:
        return None
    if len(node.inputs) == 1:  # opset 1 to 9
        starts, ends = ints_attribute(node, "starts"), ints_attribute(node, "ends")
        axes, steps = ints_attribute(node, "axes"), None
    else:
        given = [
            None if each is None else each.constants for each in ask.integers(*node.inputs[1:])
        ]
        if any(
            value is not None and numbers is None
            for value, numbers in zip(node.inputs[1:], given, strict=True)
        ):
            return None
        starts, ends, axes, steps = [*given, None, None][:4]
    if starts is None or ends is None or not len(starts) == len(ends) == 1:
        return None
    step = 1 if steps is None else steps[0]
    if (axes is not None and axes[0] not in (0, -1)) or step == 0:
        return None
    if step < 0 and ends[0] >= FAR:  # empty by ONNX's text, everything in ONNX Runtime
        return None
    return Integers.vector(data.elements[slice(starts[0], ends[0], step)], data.dtype)


def _concat(node: ir.Node, _: int, ask: Questions) -> Integers | None:
    parts = [each for each in ask.integers(*node.inputs) if each is not None]
    if len(parts) != len(node.inputs) or any(part.is_scalar for part in parts):
        return None
    return _vector([element for part in parts for element in part.elements], parts[0].dtype)


def _split(node: ir.Node, index: int, ask: Questions) -> Integers | None:
    data, *rest = ask.integers(*node.inputs)
    if data is None or data.is_scalar:
        return None
    sizes = ints_attribute(node, "split")
    if sizes is None and rest:
        sizes = rest[0].constants if rest[0] is not None else None
        if sizes is None:
            return None
    if sizes is None:
        part = -(-len(data.elements) // len(node.outputs))
        sizes = (part,) * len(node.outputs)
    start = sum(sizes[:index])
    return Integers.vector(data.elements[start : start + sizes[index]], data.dtype)


def _unsqueeze(node: ir.Node, _: int, ask: Questions) -> Integers | None:
    data, axes = _data_and_axes(node, ask)
    if data is None or not data.is_scalar or axes not in ((0,), (-1,)):
        return None
    return Integers.vector(data.elements, data.dtype)


def _squeeze(node: ir.Node, _: int, ask: Questions) -> Integers | None:
    data, axes = _data_and_axes(node, ask)
    if data is None or data.is_scalar or len(data.elements) != 1:
        return None
    whole = len(node.inputs) == 1 and "axes" not in node.attributes
    return Integers.scalar(data.elements[0], data.dtype) if whole or axes in ((0,), (-1,)) else None


def _data_and_axes(node: ir.Node, ask: Questions) -> tuple[Integers | None, tuple[int, ...] | None]:
    """The first input, and the axes from the attribute or the second one."""
    data, *rest = ask.integers(*node.inputs)
    axes = ints_attribute(node, "axes")
    if axes is None and rest and rest[0] is not None:
        axes = rest[0].constants
    return data, axes


def _reshape(node: ir.Node, _: int, ask: Questions) -> Integers | None:
    if len(node.inputs) < 2:
        return None
    data, target = ask.integers(*node.inputs)
    if data is None or target is None or target.constants is None or target.is_scalar:
        return None
    if not target.constants:
        return Integers.scalar(data.elements[0], data.dtype) if len(data.elements) == 1 else None
    copies_length = target.constants == (0,) and not data.is_scalar
    if target.constants in ((-1,), (len(data.elements),)) or (
        copies_length and int_attribute(node, "allowzero", 0) == 0
    ):
        return Integers.vector(data.elements, data.dtype)
    return None


def _expand(node: ir.Node, _: int, ask: Questions) -> Integers | None:
    data, target = ask.integers(*node.inputs)
    if data is None or target is None or target.constants is None or len(target.elements) > 1:
        return None
    if not target.elements or (target.constants == (1,) and not data.is_scalar):
        return data
    length = target.constants[0]
    if len(data.elements) == 1 and 0 <= length <= MOST_ELEMENTS:
        return _vector(data.elements * length, data.dtype)
    return data if len(data.elements) == length else None


# Arithmetic, element by element


def _elementwise(function: _Function, dtype: ir.DataType | None = None) -> IntegerRule:
    """A rule from what happens to single elements; a dtype of None is that of the inputs."""

    def rule(node: ir.Node, _: int, ask: Questions) -> Integers | None:
        inputs = [each for each in ask.integers(*node.inputs) if each is not None]
        if len(inputs) != len(node.inputs) or not inputs or "broadcast" in node.attributes:
            return None
        return _map(function, inputs, dtype)

    return rule


def _map(
    function: _Function, inputs: Sequence[Integers], dtype: ir.DataType | None
) -> Integers | None:
    lengths = {len(each.elements) for each in inputs if not each.is_scalar}
    if len(lengths - {1}) > 1:
        return None
    length = max(lengths, default=1) if 0 not in lengths else 0
    columns = [
        each.elements * length if len(each.elements) == 1 else each.elements for each in inputs
    ]
    elements = tuple(function(*row) for row in zip(*columns, strict=True))
    result = dtype if dtype is not None else inputs[-1].dtype
    if not all(_fits(element, result) for element in elements):
        return None
    return Integers(elements, not lengths, result)


def _fits(element: Expression, dtype: ir.DataType) -> bool:
    """Whether a constant is in the range of the type, so that nothing has wrapped around."""
    value = element.constant
    if value is None:
        return True
    if dtype == _BOOL:
        return value in (0, 1)
    bounds = np.iinfo(dtype.numpy())
    return int(bounds.min) <= value <= int(bounds.max)


def _mod_of_either_kind(node: ir.Node, index: int, ask: Questions) -> Integers | None:
    function = arithmetic.remainder if int_attribute(node, "fmod", 0) == 1 else arithmetic.modulo
    return _elementwise(function)(node, index, ask)


def _cast(node: ir.Node, _: int, ask: Questions) -> Integers | None:
    [data] = ask.integers(node.inputs[0])
    target = ir.DataType(int_attribute(node, "to", 0))
    if data is None or target not in INTEGER_TYPES:
        return None
    if target == _BOOL and data.dtype != _BOOL:
        return _map(arithmetic.truth, [data], target)
    return _map(lambda each: each, [data], target)


# Reductions


def _reduction(fold: Callable[[Sequence[Expression]], Expression]) -> IntegerRule:
    """A rule for a reduction over the one axis of a vector."""

    def rule(node: ir.Node, _: int, ask: Questions) -> Integers | None:
        data, axes = _data_and_axes(node, ask)
        if data is None or data.is_scalar or not data.elements or data.dtype == _BOOL:
            return None
        whole = len(node.inputs) == 1 and "axes" not in node.attributes
        if not (whole and int_attribute(node, "noop_with_empty_axes", 0) == 0) and axes not in (
            (0,),
            (-1,),
        ):
            return None
        element = fold(data.elements)
        if not _fits(element, data.dtype):
            return None
        return Integers((element,), int_attribute(node, "keepdims", 1) == 0, data.dtype)

    return rule


def _vector(elements: Sequence[Expression], dtype: ir.DataType) -> Integers | None:
    return Integers.vector(elements, dtype) if len(elements) <= MOST_ELEMENTS else None


_RULES: dict[str, IntegerRule] = {
    "Shape": _shape,
    "Size": _size,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Identity": _identity,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Split": _split,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Expand": _expand,
    "Cast": _cast,
    "Add": _elementwise(lambda one, other: one + other),
    "Sub": _elementwise(lambda one, other: one - other),
    "Mul": _elementwise(lambda one, other: one * other),
    "Neg": _elementwise(lambda one: -one),
    "Div": _elementwise(arithmetic.divide),
    "Mod": _mod_of_either_kind,
    "Min": _elementwise(arithmetic.minimum),
    "Max": _elementwise(arithmetic.maximum),
    "Abs": _elementwise(arithmetic.absolute),
    "Where": _elementwise(arithmetic.choose),
    "Equal": _elementwise(arithmetic.equal, _BOOL),
    "Less": _elementwise(arithmetic.less, _BOOL),
    "LessOrEqual": _elementwise(arithmetic.less_or_equal, _BOOL),
    "Greater": _elementwise(lambda one, other: arithmetic.less(other, one), _BOOL),
    "GreaterOrEqual": _elementwise(lambda one, other: arithmetic.less_or_equal(other, one), _BOOL),
    "Not": _elementwise(lambda one: ONE - one, _BOOL),
    "And": _elementwise(arithmetic.both, _BOOL),
    "Or": _elementwise(arithmetic.either, _BOOL),
    "Xor": _elementwise(arithmetic.exactly_one, _BOOL),
    "ReduceProd": _reduction(product),
    "ReduceSum": _reduction(lambda elements: sum(elements, ZERO)),
    "ReduceMax": _reduction(lambda elements: arithmetic.maximum(*elements)),
    "ReduceMin": _reduction(lambda elements: arithmetic.minimum(*elements)),
}

#: Operators that have a rule here.
INTEGER_OPERATORS = tuple(_RULES)
