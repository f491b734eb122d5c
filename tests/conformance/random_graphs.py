"""Random models of operators that the passes rewrite, with dynamic sizes, bodies and odd spellings.

A value is known by its shape, in which ``N`` is the one dynamic size. Every step takes a value and
gives one; numbers are kept small, so that what differs between two results is not rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["random_model"]

#: The dynamic size.
N = "N"
Dim = int | str

#: A step keeps a value no larger than so many elements for each N.
_MOST_ELEMENTS = 4096
_OPSET_HARD_SWISH = 14
_UNARY = (
    *("Relu", "Neg", "Abs", "Sigmoid", "Tanh", "Erf", "Identity", "Sin", "Softsign", "HardSwish"),
    *("HardSigmoid", "LeakyRelu", "Elu", "Selu", "Softplus", "Dropout"),
)


@dataclasses.dataclass(frozen=True)
class Value:
    """A float tensor of a graph.

    Attributes:
        name: Its name.
        shape: Its shape.
    """

    name: str
    shape: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements for N = 1."""
        return math.prod(1 if dim == N else int(dim) for dim in self.shape)


class _Builder:
    """Adds nodes to a graph, or to a body in it."""

    def __init__(self, rng: np.random.Generator, opset: int, prefix: str = "") -> None:
        self.rng, self.opset, self.prefix = rng, opset, prefix
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._count = 0

    def name(self, hint: str) -> str:
        self._count += 1
        return f"{self.prefix}{hint}{self._count}"

    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def renamed(self, value: Value) -> Value:
        return Value(self.node("Identity", value.name), value.shape)

    def unary(self) -> str:
        """An elementwise operator of the opset."""
        known = [op for op in _UNARY if op != "HardSwish" or self.opset >= _OPSET_HARD_SWISH]
        return str(self.pick(known))

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        return self.nodes_out(op_type, inputs, 1, **attributes)[0]

    def nodes_out(
        self, op_type: str, inputs: Sequence[str], outputs: int, **attributes: Any
    ) -> list[str]:
        made = [self.name("v") for _ in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, made, **attributes))
        return made

    def constant(self, array: Any, dtype: Any = np.float32) -> str:
        """An initializer or a Constant node."""
        tensor = numpy_helper.from_array(np.asarray(array, dtype))
        if self.chance(0.4):
            return self.node("Constant", value=tensor)
        name = tensor.name = self.name("c")
        self.weights.append(tensor)
        return name

    def floats(self, *shape: int, scale: float = 1.0) -> str:
        return self.constant(self.rng.uniform(-scale, scale, shape))

    def ints(self, *numbers: int) -> str:
        return self.constant(numbers, np.int64)


Step = Callable[[_Builder, Value], Value | None]


def random_model(seed: int, length: int = 14, opset: int = 18) -> onnx.ModelProto:
    """A valid model with one input ``x`` and a few outputs; the same for the same seed."""
    rng = np.random.default_rng(seed)
    shapes: list[tuple[Dim, ...]] = [(N, 4, 6, 6), (N, 6, 8), (N, 8), (2, N, 6), (N, 4, 5), (3, 4)]
    builder = _Builder(rng, opset)
    start = Value("x", shapes[int(rng.integers(len(shapes)))])
    values = [start]
    for _ in range(length):
        step = builder.pick(_STEPS)
        value = values[-1] if builder.chance(0.75) else builder.pick(values)
        made = step(builder, value)
        if made is not None and made.size <= _MOST_ELEMENTS:
            values.append(made)
    ends = [values[-1], *(value for value in values[1:-1] if builder.chance(0.15))]
    outputs = [
        builder.renamed(value) if builder.chance(0.3) else value
        for value in dict.fromkeys(ends)
        if value is not start
    ] or [Value(builder.node("Relu", "x"), start.shape)]
    graph = helper.make_graph(
        builder.nodes,
        f"random-{seed}",
        [_info(start)],
        [_info(each) for each in outputs],
        builder.weights,
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _info(value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, TensorProto.FLOAT, value.shape)


# Elementwise


def _unary(b: _Builder, v: Value) -> Value | None:
    return Value(b.node(b.unary(), v.name), v.shape)


def _arithmetic(b: _Builder, v: Value) -> Value | None:
    """With a constant that is broadcast, on either side."""
    operator = b.pick(("Add", "Sub", "Mul", "Div", "Max", "Min"))
    shape = _broadcast_shape(b, v)
    numbers = b.rng.uniform(0.5, 1.5, shape) if operator == "Div" else b.rng.normal(size=shape)
    if b.chance(0.2):
        numbers = np.full(shape, 1.0 if operator in ("Mul", "Div") else 0.0)
    inputs = [v.name, b.constant(numbers)]
    if operator != "Div" and b.chance(0.4):
        inputs.reverse()
    return Value(b.node(operator, *inputs), v.shape)


def _broadcast_shape(b: _Builder, v: Value) -> tuple[int, ...]:
    kept = int(b.rng.integers(0, v.rank + 1))
    dims = v.shape[v.rank - kept :]
    return tuple(1 if dim == N or b.chance(0.3) else int(dim) for dim in dims)


def _combine(b: _Builder, v: Value) -> Value | None:
    """Two values that are made of one, perhaps in the same way."""
    one = b.node(b.unary(), v.name)
    other = b.node(b.unary(), v.name) if b.chance(0.7) else v.name
    return Value(b.node(b.pick(("Add", "Mul", "Sub", "Max")), one, other), v.shape)


def _clamp(b: _Builder, v: Value) -> Value | None:
    low, high = sorted(b.rng.uniform(-2, 2, 2))
    match int(b.rng.integers(4)):
        case 0:
            return Value(b.node("Clip", v.name, b.constant(low), b.constant(high)), v.shape)
        case 1:
            return Value(
                b.node("Min", b.node("Max", v.name, b.constant(low)), b.constant(high)), v.shape
            )
        case 2:
            return Value(b.node("Relu", b.node("Clip", v.name, "", b.constant(high))), v.shape)
    return Value(b.node("Clip", b.node("Relu", v.name), b.constant(low), b.constant(high)), v.shape)


def _casts(b: _Builder, v: Value) -> Value | None:
    types = b.pick(((11, 1), (11, 11, 1), (1,), (6, 1), (7, 6, 1), (9, 1), (11, 7, 1)))
    name = b.node("Clip", b.node("Mul", v.name, b.constant(0.77)), b.constant(-99.0), "")
    for to in types:
        name = b.node("Cast", name, to=to)
    return Value(name, v.shape)


def _activation(b: _Builder, v: Value) -> Value | None:
    """Spellings of activations by exporters."""
    x = v.name
    match int(b.rng.integers(5)):
        case 0:
            a = b.node("Clip", b.node("Add", x, b.constant(3.0)), b.constant(0.0), b.constant(6.0))
            y = b.node("Div", b.node("Mul", x, a), b.constant(6.0))
        case 1:
            y = b.node("Mul", b.node("Sigmoid", x), x)
        case 2:
            a = b.node("Erf", b.node("Div", x, b.constant(math.sqrt(2))))
            y = b.node("Mul", b.node("Mul", x, b.node("Add", a, b.constant(1.0))), b.constant(0.5))
        case 3:
            y = b.node("Mul", x, b.node("Tanh", b.node("Softplus", x)))
        case _:
            slope = b.constant(b.rng.uniform(0, 1, _broadcast_shape(b, v)))
            y = b.node("PRelu", x, slope)
    return Value(y, v.shape)


def _select(b: _Builder, v: Value) -> Value | None:
    condition = b.node("Greater", v.name, b.constant(0.012))
    return Value(b.node("Where", condition, v.name, b.node("Neg", v.name)), v.shape)


# Products and normalization


def _matmul(b: _Builder, v: Value) -> Value | None:
    if v.rank < 2 or v.shape[-1] == N:
        return None
    width = int(v.shape[-1])
    size = b.pick((width, 5))
    y = b.node("MatMul", v.name, b.floats(width, size, scale=1 / width))
    if b.chance(0.6):
        y = b.node("Add", y, b.floats(size))
    return Value(y, (*v.shape[:-1], size))


def _gemm(b: _Builder, v: Value) -> Value | None:
    if v.rank != 2 or v.shape[1] == N:
        return None
    width, size, transposed = int(v.shape[1]), 5, int(b.chance(0.5))
    shape = (size, width) if transposed else (width, size)
    inputs = [v.name, b.floats(*shape, scale=1 / width)]
    if b.chance(0.7):
        inputs.append(b.floats(*b.pick(((size,), (1, size), (1,), ()))))
    attributes = {"transB": transposed} | ({"alpha": 0.5, "beta": 2.0} if b.chance(0.3) else {})
    return Value(b.node("Gemm", *inputs, **attributes), (v.shape[0], size))


def _layer_norm(b: _Builder, v: Value) -> Value | None:
    if v.rank < 2 or v.shape[-1] == N or v.shape[-1] == 1:
        return None
    axes = [b.ints(-1)] if b.opset >= 18 else []
    attributes: dict[str, Any] = {} if b.opset >= 18 else {"axes": [-1]}
    mean = b.node("ReduceMean", v.name, *axes, **attributes)
    centred = b.node("Sub", v.name, mean)
    square = b.node("Pow", centred, b.constant(2.0))
    variance = b.node("ReduceMean", square, *axes, **attributes)
    root = b.node("Sqrt", b.node("Add", variance, b.constant(1e-2)))
    y = b.node("Div", centred, root)
    if b.chance(0.5):
        width = int(v.shape[-1])
        y = b.node("Add", b.node("Mul", y, b.floats(width)), b.floats(width))
    return Value(y, v.shape)


def _softmax(b: _Builder, v: Value) -> Value | None:
    axis = int(b.rng.integers(-v.rank, v.rank))
    return Value(b.node("Softmax", v.name, axis=axis), v.shape)


def _reduce(b: _Builder, v: Value) -> Value | None:
    axis = int(b.rng.integers(v.rank))
    keep = int(b.chance(0.5))
    if v.rank < 2:
        return None
    y = b.node("ReduceSum", v.name, b.ints(axis), keepdims=keep)
    y = b.node("Tanh", y)
    return Value(y, (*v.shape[:axis], *([1] * keep), *v.shape[axis + 1 :]))


# Images


def _channels(v: Value) -> int | None:
    if v.rank not in (3, 4) or N in v.shape[1:]:
        return None
    return int(v.shape[1]) if min(map(int, v.shape[2:])) >= 3 else None


def _conv(b: _Builder, v: Value) -> Value | None:
    channels = _channels(v)
    if channels is None:
        return None
    spatial = v.rank - 2
    kernel, depthwise = b.pick((1, 3)), b.chance(0.3)
    pad, stride = (b.pick((0, 1)) if kernel == 3 else 0), b.pick((1, 1, 2))
    made = channels if depthwise else b.pick((channels, 4, 6))
    group = channels if depthwise else 1
    weight = b.floats(made, channels // group, *[kernel] * spatial, scale=1 / channels)
    inputs = [v.name, weight, *([b.floats(made)] if b.chance(0.5) else [])]
    attributes = {"pads": [pad] * 2 * spatial, "strides": [stride] * spatial, "group": group}
    y = b.node("Conv", *inputs, **attributes)
    sizes = [(int(dim) + 2 * pad - kernel) // stride + 1 for dim in v.shape[2:]]
    return _after_conv(b, Value(y, (v.shape[0], made, *sizes)))


def _after_conv(b: _Builder, v: Value) -> Value:
    channels, name = int(v.shape[1]), v.name
    if b.chance(0.5):
        name = _normalize(b, name, channels)
    if b.chance(0.3):
        shape = b.pick(((), (1,), (channels, *[1] * (v.rank - 2))))
        name = b.node(b.pick(("Mul", "Add")), name, b.floats(*shape))
    return Value(name, v.shape)


def _normalize(b: _Builder, name: str, channels: int) -> str:
    means = [b.floats(channels) for _ in range(3)]
    variance = b.constant(b.rng.uniform(0.5, 2, channels))
    return b.node("BatchNormalization", name, *means, variance)


def _batch_norm(b: _Builder, v: Value) -> Value | None:
    if v.rank < 2 or v.shape[1] == N:
        return None
    return Value(_normalize(b, v.name, int(v.shape[1])), v.shape)


def _conv_transpose(b: _Builder, v: Value) -> Value | None:
    channels = _channels(v)
    if channels is None:
        return None
    spatial = v.rank - 2
    weight = b.floats(channels, 4, *[2] * spatial, scale=1 / channels)
    y = b.node("ConvTranspose", v.name, weight, strides=[2] * spatial)
    return _after_conv(b, Value(y, (v.shape[0], 4, *(int(dim) * 2 for dim in v.shape[2:]))))


def _pool(b: _Builder, v: Value) -> Value | None:
    if _channels(v) is None:
        return None
    spatial = v.rank - 2
    name, padded = v.name, 0
    if b.chance(0.5):
        padded = 1
        pads = b.ints(0, 0, *[1] * spatial, 0, 0, *[1] * spatial)
        mode = b.pick(("constant", "reflect", "edge"))
        name = b.node("Pad", name, pads, *([b.constant(0.0)] if b.chance(0.4) else []), mode=mode)
    kernel = b.pick((1, 2))
    operator = b.pick(("MaxPool", "AveragePool"))
    y = b.node(operator, name, kernel_shape=[kernel] * spatial, strides=[1] * spatial)
    sizes = [int(dim) + 2 * padded - kernel + 1 for dim in v.shape[2:]]
    return Value(y, (*v.shape[:2], *sizes))


def _pad_conv(b: _Builder, v: Value) -> Value | None:
    if _channels(v) is None:
        return None
    spatial = v.rank - 2
    pads = b.ints(0, 0, *[1] * spatial, 0, 0, *[b.pick((0, 2))] * spatial)
    end = int(numpy_helper.to_array(_tensor(b, pads))[-1])
    padded = b.node("Pad", v.name, pads)
    sizes = [int(dim) + 1 + end for dim in v.shape[2:]]
    return _conv(b, Value(padded, (*v.shape[:2], *sizes)))


def _tensor(b: _Builder, name: str) -> onnx.TensorProto:
    for weight in b.weights:
        if weight.name == name:
            return weight
    [node] = [node for node in b.nodes if node.output[0] == name]
    return node.attribute[0].t


# Movement


def _transpose(b: _Builder, v: Value) -> Value | None:
    perm = [int(axis) for axis in b.rng.permutation(v.rank)]
    made = Value(b.node("Transpose", v.name, perm=perm), tuple(v.shape[axis] for axis in perm))
    if b.chance(0.6):  # and back, with something between
        name = b.node(b.unary(), made.name)
        if b.chance(0.5):
            name = b.node("Add", name, b.floats(*_broadcast_shape(b, made)))
        back = [perm.index(axis) for axis in range(v.rank)]
        return Value(b.node("Transpose", name, perm=back), v.shape)
    return made


def _to_itself(b: _Builder, v: Value) -> Value | None:
    """A Reshape or Expand whose shape is computed and changes nothing."""
    shape = b.node("Shape", v.name)
    if b.chance(0.5):
        parts = [b.node("Gather", shape, b.ints(axis)) for axis in range(v.rank)]
        shape = b.node("Concat", *parts, axis=0)
    return Value(b.node(b.pick(("Reshape", "Expand")), v.name, shape), v.shape)


def _split_axis(b: _Builder, v: Value) -> Value | None:
    """Take an axis apart in two, move them, and put them together again, as attention does."""
    axes = [axis for axis, dim in enumerate(v.shape) if dim != N and int(dim) % 2 == 0 and int(dim)]
    if not axes or v.rank > 4:
        return None
    axis = b.pick(axes)
    half = int(v.shape[axis]) // 2
    target = _target(v.shape, axis)
    target[axis : axis + 1] = [2, half]
    split = b.node("Reshape", v.name, b.ints(*target))
    dims = (*v.shape[:axis], 2, half, *v.shape[axis + 1 :])
    if b.chance(0.5):
        return Value(split, dims)
    name = b.node(b.unary(), split)
    return Value(b.node("Reshape", name, b.ints(*_target(v.shape, axis))), v.shape)


def _target(shape: tuple[Dim, ...], axis: int) -> list[int]:
    """What Reshape takes for a shape: N is copied before an axis that changes, else inferred."""
    return [(0 if at <= axis else -1) if dim == N else int(dim) for at, dim in enumerate(shape)]


def _unsqueeze(b: _Builder, v: Value) -> Value | None:
    if v.rank > 4:
        return None
    axis = int(b.rng.integers(v.rank + 1))
    name = b.node("Unsqueeze", v.name, b.ints(axis))
    shape = (*v.shape[:axis], 1, *v.shape[axis:])
    if b.chance(0.5):
        name = b.node("Squeeze", b.node(b.unary(), name), b.ints(axis))
        shape = v.shape
    return Value(name, shape)


def _slices(b: _Builder, v: Value) -> Value | None:
    """One Slice, or two after each other; axes of fixed size only."""
    axes = [axis for axis, dim in enumerate(v.shape) if dim != N and int(dim) >= 2]
    if not axes:
        return None
    name, shape = v.name, list(v.shape)
    for _ in range(b.pick((1, 2))):
        axis = b.pick(axes)
        size = int(shape[axis])
        if size < 2:
            break
        start = int(b.rng.integers(0, size - 1))
        end = int(b.rng.integers(start + 1, size + 1))
        step = b.pick((1, 1, 2))
        far = b.chance(0.3)
        stop = 2**62 if far else end
        name = b.node("Slice", name, b.ints(start), b.ints(stop), b.ints(axis), b.ints(step))
        shape[axis] = len(range(start, size if far else end, step))
    return Value(name, tuple(shape))


def _split_concat(b: _Builder, v: Value) -> Value | None:
    axes = [axis for axis, dim in enumerate(v.shape) if dim != N and int(dim) >= 2]
    if not axes:
        return None
    axis = b.pick(axes)
    first = int(b.rng.integers(1, int(v.shape[axis])))
    sizes = b.ints(first, int(v.shape[axis]) - first)
    parts = b.nodes_out("Split", [v.name, sizes], 2, axis=axis)
    if b.chance(0.3):
        parts.reverse()
    if b.chance(0.3):
        parts[0] = b.node(b.unary(), parts[0])
    return Value(b.node("Concat", *parts, axis=axis), v.shape)


def _gather(b: _Builder, v: Value) -> Value | None:
    axes = [axis for axis, dim in enumerate(v.shape) if dim != N and int(dim) >= 2]
    if not axes:
        return None
    axis = b.pick(axes)
    size = int(v.shape[axis])
    indices = list(range(size)) if b.chance(0.3) else [0, size - 1, -1]
    name = b.node("Gather", v.name, b.ints(*indices), axis=axis)
    return Value(name, (*v.shape[:axis], len(indices), *v.shape[axis + 1 :]))


# Control flow


def _branch(b: _Builder, v: Value) -> Value | None:
    """An If that captures the value; its condition is constant, a size, or data."""
    match int(b.rng.integers(3)):
        case 0:
            condition = b.constant(b.chance(0.5), np.bool_)
        case 1:
            size = b.node("Gather", b.node("Shape", v.name), b.constant(0, np.int64))
            condition = b.node("Equal", size, b.constant(b.pick((1, 3)), np.int64))
        case _:
            # A sum may be 0 but for rounding, and rounding must not decide.
            highest = b.node("ReduceMax", v.name, keepdims=0)
            condition = b.node("Greater", highest, b.constant(0.234))
    bodies = [_body(b, v, f"{b.name('b')}_") for _ in range(2)]
    name = b.node("If", condition, then_branch=bodies[0], else_branch=bodies[1])
    return Value(name, v.shape)


def _body(b: _Builder, v: Value, prefix: str) -> onnx.GraphProto:
    inner = _Builder(b.rng, b.opset, prefix)
    made = v
    for _ in range(b.pick((1, 2, 3))):
        step = b.pick((_unary, _arithmetic, _combine, _clamp, _to_itself, _transpose_twice))
        made = step(inner, made) or made
    if made is v:
        made = Value(inner.node("Identity", v.name), v.shape)
    return helper.make_graph(inner.nodes, prefix, [], [_info(made)], inner.weights)


def _transpose_twice(b: _Builder, v: Value) -> Value | None:
    perm = list(reversed(range(v.rank)))
    return Value(b.node("Transpose", b.node("Transpose", v.name, perm=perm), perm=perm), v.shape)


def _loop(b: _Builder, v: Value) -> Value | None:
    """A Loop of some iterations that captures the value and carries another."""
    inner = _Builder(b.rng, b.opset, f"{b.name('l')}_")
    carried = Value(inner.name("state"), v.shape)
    added = inner.node("Add", carried.name, v.name)
    result = _unary(inner, Value(inner.node("Tanh", added), v.shape))
    assert result is not None
    go_on = inner.node("Identity", f"{inner.prefix}go")
    body = helper.make_graph(
        inner.nodes,
        inner.prefix,
        [
            helper.make_tensor_value_info(f"{inner.prefix}i", TensorProto.INT64, []),
            helper.make_tensor_value_info(f"{inner.prefix}go", TensorProto.BOOL, []),
            _info(carried),
        ],
        [helper.make_tensor_value_info(go_on, TensorProto.BOOL, []), _info(result)],
        inner.weights,
    )
    count = b.constant(b.pick((0, 1, 3)), np.int64)
    return Value(b.node("Loop", count, "", v.name, body=body), v.shape)


_STEPS: tuple[Step, ...] = (
    *(_unary, _unary, _arithmetic, _arithmetic, _combine, _clamp, _casts, _activation, _select),
    *(_matmul, _gemm, _layer_norm, _softmax, _reduce),
    *(_conv, _conv, _conv, _batch_norm, _conv_transpose, _pool, _pad_conv),
    *(_transpose, _transpose, _to_itself, _split_axis, _unsqueeze, _slices, _split_concat, _gather),
    *(_branch, _loop),
)
