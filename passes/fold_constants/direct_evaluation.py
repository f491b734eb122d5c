"""Evaluate operators that move numbers or count, with numpy and without a runtime.

Only what is exact by definition is in here: moving elements, conversions that numpy and the runtime
round alike, arithmetic on integers and truth values, and the operations that IEEE 754 requires to
be rounded correctly (sum, difference, product, quotient, square root), which leave no choice.
Transposes, slices and expansions are views and cost no memory, however large the weight. Everything
else is the runtime's business, so that folded numbers are its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.symbolic_values import FAR
from onnxopt.op_traits import is_standard

__all__ = ["evaluate_directly"]

Array: TypeAlias = np.ndarray[Any, Any]

#: The first opset of which Reshape, Squeeze, Slice and kin are evaluated here.
_FIRST_OPSET = 7
_FLOATS = (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)
#: Element types of IEEE 754; ONNX Runtime computes in float32 for float16, which rounds alike.
_IEEE = frozenset((np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)))
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class _NotDirect(Exception):  # noqa: N818 - it is an answer, not an error
    """This case is not certain, or too large; ask the runtime."""


def evaluate_directly(
    node: ir.Node, opset: int, inputs: Sequence[ir.TensorProtocol | None], limit_bytes: int
) -> list[Array] | None:
    """The outputs of a node, or None where this module does not know it.

    Args:
        node: A node of the standard domain.
        opset: Version of the standard domain where the node stands.
        inputs: Its inputs; None for those left out. They are read only where they are needed.
        limit_bytes: Results that need new memory may need so much. Views are free.

    Returns:
        Arrays in the order of the outputs; they may be views of the inputs, also strided ones.
        None also when the runtime would refuse the node (an index out of range, for example).
    """
    function = _FUNCTIONS.get(node.op_type)
    if function is None or not is_standard(node) or opset < _FIRST_OPSET:
        return None
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return None
    try:
        with np.errstate(all="ignore"):
            return function(_Call(node, opset, inputs, limit_bytes))
    except (_NotDirect, ValueError, IndexError, TypeError, OverflowError, KeyError):
        return None


class _Call:
    """A node with the numbers it reads."""

    def __init__(
        self,
        node: ir.Node,
        opset: int,
        inputs: Sequence[ir.TensorProtocol | None],
        limit_bytes: int,
    ) -> None:
        self.opset = opset
        self._attributes = node.attributes
        self._inputs = inputs
        self._limit_bytes = limit_bytes

    @property
    def count(self) -> int:
        return len(self._inputs)

    def tensor(self, index: int) -> ir.TensorProtocol:
        found = self.optional(index)
        if found is None:
            raise _NotDirect
        return found

    def array(self, index: int) -> Array:
        return np.asarray(self.tensor(index).numpy())

    def optional(self, index: int) -> ir.TensorProtocol | None:
        return self._inputs[index] if index < len(self._inputs) else None

    def integers(self, index: int) -> list[int] | None:
        if self.optional(index) is None:
            return None
        array = self.array(index)
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise _NotDirect
        return [int(number) for number in array]

    def attribute(self, name: str, default: Any = None) -> Any:
        found = self._attributes.get(name)
        return default if found is None else found.value

    def axes(self, index: int = 1) -> list[int] | None:
        """Axes, which are an attribute in old opsets and an input in newer ones."""
        given = self.attribute("axes")
        return list(given) if given is not None else self.integers(index)

    def allow(self, shape: Sequence[int], dtype: Any) -> None:
        """Stop when an array of this shape is too large to allocate."""
        if math.prod(shape) * np.dtype(dtype).itemsize > self._limit_bytes:
            raise _NotDirect


def _identity(call: _Call) -> list[Array]:
    return [call.array(0)]


def _reshaped(call: _Call, shape: Sequence[int]) -> list[Array]:
    array = call.array(0)
    if not array.flags.c_contiguous:  # then numpy has to copy
        call.allow(array.shape, array.dtype)
    return [array.reshape(tuple(shape))]


def _reshape(call: _Call) -> list[Array]:
    array, target = call.array(0), call.integers(1)
    if target is None or min(target, default=0) < -1:
        raise _NotDirect
    if not call.attribute("allowzero", 0):
        target = [array.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return _reshaped(call, target)


def _flatten(call: _Call) -> list[Array]:
    array, axis = call.array(0), call.attribute("axis", 1)
    if not -array.ndim <= axis <= array.ndim:
        raise _NotDirect
    axis = axis + array.ndim if axis < 0 else axis
    return _reshaped(call, (math.prod(array.shape[:axis]), math.prod(array.shape[axis:])))


def _squeeze(call: _Call) -> list[Array]:
    axes = call.axes()
    return [np.squeeze(call.array(0), None if axes is None else tuple(axes))]


def _unsqueeze(call: _Call) -> list[Array]:
    axes = call.axes()
    if axes is None:
        raise _NotDirect
    return [np.expand_dims(call.array(0), tuple(axes))]


def _transpose(call: _Call) -> list[Array]:
    return [np.transpose(call.array(0), call.attribute("perm"))]


def _shape(call: _Call) -> list[Array]:
    shape = call.tensor(0).shape.numpy()
    part = shape[call.attribute("start", 0) : call.attribute("end", len(shape))]
    return [np.array(part, dtype=np.int64)]


def _size(call: _Call) -> list[Array]:
    return [np.array(call.tensor(0).size, dtype=np.int64)]


def _slice(call: _Call) -> list[Array]:
    array = call.array(0)
    if call.opset < 10:
        starts, ends = call.attribute("starts"), call.attribute("ends")
        axes, steps = call.attribute("axes"), None
    else:
        starts, ends = call.integers(1), call.integers(2)
        axes, steps = call.integers(3), call.integers(4)
    if starts is None or ends is None:
        raise _NotDirect
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    cuts = [slice(None)] * array.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cuts[axis] = _cut(start, end, step, array.shape[axis])
    return [array[tuple(cuts)]]


def _cut(start: int, end: int, step: int, size: int) -> slice:
    """Clamp bounds that are out of range (ONNX specification, Slice-13)."""
    if step > 0 or size == 0:
        return slice(start, end, step)
    if end >= FAR:  # empty by the specification, not in ONNX Runtime
        raise _NotDirect
    # Going backwards, Python lets a start before the first element mean none; ONNX, the first.
    start = min(max(start + size if start < 0 else start, 0), size - 1)
    end = max(end + size if end < 0 else end, -1)
    return slice(start, None if end == -1 else end, step)


def _split(call: _Call) -> list[Array]:
    array, axis = call.array(0), call.attribute("axis", 0)
    sizes = call.attribute("split") if call.opset < 13 else call.integers(1)
    if sizes is None or min(sizes) < 0 or sum(sizes) != array.shape[axis]:
        raise _NotDirect
    return list(np.split(array, np.cumsum(sizes)[:-1], axis))


def _gather(call: _Call) -> list[Array]:
    array, indices, axis = call.array(0), call.array(1), call.attribute("axis", 0)
    rest = array.size // max(array.shape[axis], 1)
    call.allow((rest, *indices.shape), array.dtype)
    return [np.asarray(np.take(array, indices, axis))]


def _concat(call: _Call) -> list[Array]:
    arrays = [call.array(index) for index in range(call.count)]
    if len({array.dtype for array in arrays}) != 1:
        raise _NotDirect
    call.allow((sum(array.size for array in arrays),), arrays[0].dtype)
    return [np.concatenate(arrays, call.attribute("axis"))]


def _expand(call: _Call) -> list[Array]:
    array, target = call.array(0), call.integers(1)
    if target is None:
        raise _NotDirect
    return [np.broadcast_to(array, np.broadcast_shapes(array.shape, tuple(target)))]


def _constant_of_shape(call: _Call) -> list[Array]:
    shape, value = call.integers(0), call.attribute("value")
    if shape is None:
        raise _NotDirect
    fill = np.zeros((), np.float32) if value is None else np.asarray(value.numpy())
    if fill.dtype.kind not in "iufb" or fill.size != 1:
        raise _NotDirect
    return [np.broadcast_to(fill.reshape(()), tuple(shape))]


def _range(call: _Call) -> list[Array]:
    start, limit, delta = (call.array(index) for index in range(3))
    if start.dtype.kind != "i" or not start.size == limit.size == delta.size == 1:
        raise _NotDirect  # the runtime adds floats up in its own way
    numbers = range(int(start.item()), int(limit.item()), int(delta.item()))
    call.allow((len(numbers),), start.dtype)
    return [np.arange(numbers.start, numbers.stop, numbers.step, dtype=start.dtype)]


def _cast(call: _Call) -> list[Array]:
    array = call.array(0)
    source, target = ir.DataType.from_numpy(array.dtype), ir.DataType(call.attribute("to"))
    if source == target:
        return [array]
    if source in _FLOATS:
        # Float to integer is undefined out of range, and a double may be rounded twice on its way
        # to 16 bits: the runtime shall say what it makes of them.
        certain = target in _FLOATS and not (source == ir.DataType.DOUBLE and target in _HALVES)
    else:
        certain = array.dtype.kind in "iub" and target != ir.DataType.BFLOAT16
        certain = certain and (target in _FLOATS or target.numpy().kind in "iub")
    if not certain:
        raise _NotDirect
    call.allow(array.shape, target.numpy())
    return [array.astype(target.numpy())]


def _where(call: _Call) -> list[Array]:
    condition, first, second = (call.array(index) for index in range(3))
    if condition.dtype != np.bool_ or first.dtype != second.dtype:
        raise _NotDirect
    shape = np.broadcast_shapes(condition.shape, first.shape, second.shape)
    call.allow(shape, first.dtype)
    return [np.where(condition, first, second)]


def _of_two(function: Callable[[Array, Array], Array], kinds: str) -> Callable[[_Call], Any]:
    """An elementwise operator of two inputs, for the element types that `_takes` says."""

    def evaluate(call: _Call) -> list[Array]:
        first, second = call.array(0), call.array(1)
        if call.count != 2 or first.dtype != second.dtype or not _takes(first, kinds):
            raise _NotDirect
        call.allow(np.broadcast_shapes(first.shape, second.shape), first.dtype)
        return [np.asarray(function(first, second))]

    return evaluate


def _quotient(first: Array, second: Array) -> Array:
    if (first < 0).any() or (second <= 0).any():  # rounding of negative quotients differs
        raise _NotDirect
    return first // second


def _divided(first: Array, second: Array) -> Array:
    if first.dtype.kind == "f":
        return np.asarray(first / second)
    return _quotient(first, second)


def _takes(array: Array, kinds: str) -> bool:
    """Whether the element type is of one of these numpy kinds; floats are those of IEEE 754."""
    kind = array.dtype.kind
    return kind in kinds and (kind != "f" or array.dtype in _IEEE)  # float8 may call itself one


def _of_one(function: Callable[[Array], Array], kinds: str) -> Callable[[_Call], list[Array]]:
    """An elementwise operator of one input, for the element types that `_takes` says."""

    def evaluate(call: _Call) -> list[Array]:
        array = call.array(0)
        if not _takes(array, kinds):
            raise _NotDirect
        call.allow(array.shape, array.dtype)
        return [np.asarray(function(array))]

    return evaluate


_FUNCTIONS: Mapping[str, Callable[[_Call], list[Array]]] = {
    "Identity": _identity,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Concat": _concat,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Cast": _cast,
    "Where": _where,
    "Not": _of_one(np.logical_not, "b"),
    "Neg": _of_one(np.negative, "if"),
    "Abs": _of_one(np.abs, "if"),
    "Sqrt": _of_one(np.sqrt, "f"),
    "Add": _of_two(np.add, "iuf"),
    "Sub": _of_two(np.subtract, "iuf"),
    "Mul": _of_two(np.multiply, "iuf"),
    "Div": _of_two(_divided, "iuf"),
    "Min": _of_two(np.minimum, "iu"),
    "Max": _of_two(np.maximum, "iu"),
    "Equal": _of_two(np.equal, "iub"),
    "Less": _of_two(np.less, "iu"),
    "LessOrEqual": _of_two(np.less_equal, "iu"),
    "Greater": _of_two(np.greater, "iu"),
    "GreaterOrEqual": _of_two(np.greater_equal, "iu"),
    "And": _of_two(np.logical_and, "b"),
    "Or": _of_two(np.logical_or, "b"),
}
