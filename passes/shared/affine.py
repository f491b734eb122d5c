"""Affine steps: nodes that compute ``scale * x + shift`` with constants.

Everything is held in float64, in arrays that broadcast against x as the node's own constants do, so
that composing steps is plain arithmetic and rounds once, when the result goes back into a constant.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis import values
from onnxopt.analysis.attributes import float_attribute, int_attribute
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Context, Refuse

__all__ = [
    "STEP_OPERATORS",
    "Affine",
    "Array",
    "Step",
    "batch_norm_statistics",
    "chain_ending_at",
    "compose",
    "read_step",
    "round_to",
    "scaled",
]

Array = np.ndarray[Any, np.dtype[Any]]

#: Operators `read_step` understands.
STEP_OPERATORS = ("Mul", "Div", "Add", "Sub", "Neg", "BatchNormalization")

#: Element types of the constants that are folded.
_DTYPES = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16}
)
#: A step's constant with more elements than this is data, not a scale or a shift.
_MOST_ELEMENTS = 1 << 20
#: Steps looked at together; what is longer has merged before, or never will.
_LONGEST_CHAIN = 16
#: Adding a constant this many units in the last place large is a way to round, not a shift.
_ROUNDING_SHIFT = 0.25


@dataclasses.dataclass(frozen=True)
class Affine:
    """``scale * x + shift``; both float64, of any shape that broadcasts against x."""

    scale: Array
    shift: Array

    @property
    def scales(self) -> bool:
        """Whether some scale is not one."""
        return bool((self.scale != 1).any())

    @property
    def shifts(self) -> bool:
        """Whether some shift is not zero."""
        return bool(self.shift.any())

    @property
    def is_uniform(self) -> bool:
        """Whether there is one scale and one shift for the whole tensor."""
        return self.scale.size == 1 and self.shift.size == 1

    def then(self, other: Affine) -> Affine:
        """This step, and the other one on its result."""
        return Affine(other.scale * self.scale, other.scale * self.shift + other.shift)

    def uniform(self) -> Affine:
        """The same as two numbers, when `is_uniform`: they broadcast against any shape."""
        return Affine(self.scale.reshape(()), self.shift.reshape(()))

    def along(self, axis: int, rank: int, size: int) -> tuple[Array, Array]:
        """Scale and shift as vectors of ``size`` numbers along one axis of a tensor.

        Raises:
            Refuse: When they vary along another axis, or would make the tensor larger.
        """
        return tuple(  # type: ignore[return-value]
            _vector(each, axis, rank, size) for each in (self.scale, self.shift)
        )


def _vector(array: Array, axis: int, rank: int, size: int) -> Array:
    if array.ndim > rank:
        raise Refuse("a constant has more dimensions than the tensor")
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(length != 1 for place, length in enumerate(shape) if place != axis):
        raise Refuse("a constant varies along another axis than the channels")
    if array.size not in (1, size):
        raise Refuse("a constant is longer than the channel axis")
    return np.broadcast_to(array.reshape(-1), (size,))


@dataclasses.dataclass(frozen=True)
class Step:
    """A node that is an affine step of one of its inputs."""

    node: ir.Node
    source: ir.Value
    affine: Affine
    dtype: ir.DataType

    @property
    def output(self) -> ir.Value:
        """What the step makes."""
        return self.node.outputs[0]

    def keeps_shape(self) -> bool:
        """Whether the output certainly has the shape of the source."""
        if self.node.op_type in ("BatchNormalization", "Neg"):
            return True
        known = values.dims(self.source)
        return known is not None and all(
            array.ndim <= len(known)
            and all(
                length in (1, dim)
                for length, dim in zip(array.shape[::-1], known[::-1], strict=False)
            )
            for array in (self.affine.scale, self.affine.shift)
        )


def read_step(node: ir.Node | None, context: Context) -> Step | None:
    """The node as an affine step, or None when it is none.

    Raises:
        Refuse: When it has the form of one but its constants must not be touched.
    """
    if node is None or node.op_type not in STEP_OPERATORS or not is_standard(node):
        return None
    if node.op_type == "BatchNormalization":
        return _read_batch_norm(node, context)
    if node.op_type == "Neg":
        operand = node.inputs[0]
        if operand is None or operand.dtype not in _DTYPES:
            return None
        return Step(node, operand, Affine(np.array(-1.0), np.array(0.0)), operand.dtype)
    if len(node.inputs) != 2 or "axis" in node.attributes or "broadcast" in node.attributes:
        return None
    left, right = node.inputs
    if left is None or right is None or values.is_constant(left) == values.is_constant(right):
        return None
    source, constant, swapped = (
        (left, right, False) if values.is_constant(right) else (right, left, True)
    )
    array, tensor = _constant(constant), values.constant(constant)
    affine = _binary(node.op_type, array, swapped) if array is not None else None
    if affine is None or tensor is None:
        return None
    _require_plain(affine, tensor.dtype)
    return Step(node, source, affine, tensor.dtype)


def _binary(op_type: str, constant: Array, swapped: bool) -> Affine | None:
    one, zero = np.array(1.0), np.array(0.0)
    match op_type, swapped:
        case "Mul", _:
            return Affine(constant, zero)
        case "Div", False:
            if not constant.all():
                raise Refuse("it divides by zero")
            return Affine(1.0 / constant, zero)
        case "Add", _:
            return Affine(one, constant)
        case "Sub", False:
            return Affine(one, -constant)
        case "Sub", True:
            return Affine(-one, constant)
    return None  # a constant divided by x is no affine step


def _constant(value: ir.Value) -> Array | None:
    tensor = values.constant(value)
    if tensor is None or tensor.dtype not in _DTYPES or not 0 < tensor.size <= _MOST_ELEMENTS:
        return None
    return np.asarray(tensor.numpy(), dtype=np.float64)


def _require_plain(affine: Affine, dtype: ir.DataType) -> None:
    if not (np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all()):
        raise Refuse("a constant is not finite")
    if np.abs(affine.shift).max() * _epsilon(dtype) >= _ROUNDING_SHIFT:
        raise Refuse("the shift is so large that adding it rounds")


def _epsilon(dtype: ir.DataType) -> float:
    return {
        ir.DataType.FLOAT16: 2.0**-10,
        ir.DataType.BFLOAT16: 2.0**-7,
        ir.DataType.FLOAT: 2.0**-23,
    }.get(dtype, 2.0**-52)


def batch_norm_statistics(node: ir.Node) -> tuple[Array, Array, Array, Array]:
    """Scale, bias, mean and standard deviation of a BatchNormalization, in float64.

    Raises:
        Refuse: When one is not constant or the node may train.
    """
    if int_attribute(node, "training_mode", 0) or any(
        output.name and (output.uses() or output.is_graph_output()) for output in node.outputs[1:]
    ):
        raise Refuse("BatchNormalization trains")
    if not int_attribute(node, "spatial", 1):
        raise Refuse("BatchNormalization is not spatial")
    read = [_constant(value) if value is not None else None for value in node.inputs[1:5]]
    numbers = [array for array in read if array is not None]
    if len(numbers) != 4:
        raise Refuse("the statistics of BatchNormalization are not constant")
    scale, bias, mean, variance = numbers
    spread = variance + float_attribute(node, "epsilon", 1e-5)
    if not all(np.isfinite(each).all() for each in numbers) or not (spread > 0).all():
        raise Refuse("the statistics of BatchNormalization are not finite")
    return scale, bias, mean, np.sqrt(spread)


def _read_batch_norm(node: ir.Node, context: Context) -> Step:
    if context.opset(node) < 7:
        raise Refuse("BatchNormalization before opset 7")
    scale, bias, mean, deviation = batch_norm_statistics(node)
    source = node.inputs[0]
    assert source is not None
    rank = values.rank(source) or values.rank(node.outputs[0]) or _rank_by_producer(source)
    if rank is None or rank < 2:
        raise Refuse("the rank is unknown")
    shape = (-1,) + (1,) * (rank - 2)
    factor = scale / deviation
    affine = Affine(factor.reshape(shape), (bias - mean * factor).reshape(shape))
    gain = values.constant(node.inputs[1])
    assert gain is not None
    return Step(node, source, affine, gain.dtype)


def _rank_by_producer(value: ir.Value) -> int | None:
    """Rank of what a convolution makes, which its weights tell without shape inference."""
    node = value.producer()
    if node is not None and node.op_type in ("Conv", "ConvTranspose") and is_standard(node):
        return values.rank(node.inputs[1])
    return None


def chain_ending_at(step: Step, context: Context) -> list[Step]:
    """The run of steps that ends here, first step first; nothing else reads between."""
    chain = [step]
    while len(chain) < _LONGEST_CHAIN and values.has_one_use(chain[0].source):
        producer = chain[0].source.producer()
        if producer is None or producer.graph is not step.node.graph:
            break
        try:
            before = read_step(producer, context)
        except Refuse:  # a barrier further up does not concern what follows it
            break
        if before is None:
            break
        chain.insert(0, before)
    return chain


def compose(steps: Sequence[Step]) -> Affine:
    """All the steps, one after the other."""
    return functools.reduce(Affine.then, (step.affine for step in steps))


def round_to(array: Array, dtype: ir.DataType, *, factors: bool = False) -> Array:
    """The numbers in an element type.

    Args:
        array: The numbers.
        dtype: The element type.
        factors: Whether something is multiplied by them, so that all digits count. A summand may
            come out as small as it likes.

    Raises:
        Refuse: When they overflow, or a factor would lose its digits in half precision.
    """
    with np.errstate(over="ignore"):  # an overflow is refused below
        rounded = array.astype(dtype.numpy())
    _require_finite(rounded)
    if factors and dtype == ir.DataType.FLOAT16:
        _require_normal(np.abs(array))
    return rounded


def scaled(weight: Array, factor: Array) -> Array:
    """``weight * factor`` in the element type of the weight, rounded once, without a float64 copy.

    Args:
        weight: The weight.
        factor: As many dimensions as the weight has, each 1 or the same.

    Raises:
        Refuse: When it overflows, or a channel of a half-precision weight would lose its digits.
    """
    result = np.empty_like(weight)
    with np.errstate(over="ignore"):
        np.multiply(weight, factor, out=result, dtype=np.float64, casting="unsafe")
    _require_finite(result)
    if weight.dtype == np.float16:
        spread = tuple(axis for axis in range(factor.ndim) if factor.shape[axis] == 1)
        largest = np.abs(weight).max(axis=spread, keepdims=True, initial=0)
        _require_normal(largest.astype(np.float64) * np.abs(factor))
    return result


def _require_finite(rounded: Array) -> None:
    if not np.isfinite(rounded).all():
        raise Refuse("the folded numbers overflow the element type")


def _require_normal(magnitudes: Array) -> None:
    smallest = float(np.finfo(np.float16).smallest_normal)
    if ((magnitudes > 0) & (magnitudes < smallest)).any():
        raise Refuse("the folded numbers are too small for the element type")
