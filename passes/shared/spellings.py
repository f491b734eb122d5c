"""Reading formulas that a graph spells out in elementary nodes.

An exporter writes ``x / 6``, ``x * 0.1666``, ``1 + e`` or ``e + 1`` as it pleases. The functions
here look up from a value and give its formula in a normal form (a line, a polynomial, a product),
with the nodes it is made of, so that a rule compares coefficients and not shapes of graphs.

All constants are scalars by value: one element, of any rank (`widens` says when the rank matters).
Nothing here judges whether a rewrite is allowed, except `in_the_way`, which all rules share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from onnxopt.analysis.values import constant_scalar, is_constant, rank
from onnxopt.op_traits import Trait, has_trait, is_standard

__all__ = [
    "Line",
    "Product",
    "close",
    "in_the_way",
    "leads_to",
    "lines",
    "made_by",
    "polynomial",
    "product",
    "scalar",
    "split_constant",
]

#: Relative error allowed on a constant, by element type: a few units in the last place of what an
#: exporter prints or computes in that type (1/6 as 0.16666667; 0.1666 in float16 is 0.16662598).
_TOLERANCE = {ir.DataType.FLOAT16: 1e-3, ir.DataType.DOUBLE: 1e-6}
_DEFAULT_TOLERANCE = 1e-5

#: No formula here has more linear nodes in a row, nor a deeper polynomial. Without a bound, long
#: chains would cost their square.
_LONGEST_LINE = 4
_DEEPEST_POLYNOMIAL = 8

_LINEAR = ("Add", "Sub", "Mul", "Div", "Neg")

_Nodes = tuple[ir.Node, ...]


def made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes the value, when it is a standard one of these operators."""
    node = None if value is None else value.producer()
    if node is None or node.op_type not in op_types or not is_standard(node):
        return None
    return node if value is node.outputs[0] else None


def scalar(value: ir.Value | None) -> float | None:
    """The number of a constant of one element, when it is finite."""
    number = constant_scalar(value)
    if number is None or isinstance(number, bool) or not math.isfinite(number):
        return None
    return float(number)


def close(number: float, expected: float, dtype: ir.DataType | None) -> bool:
    """Whether a constant of this element type stands for the expected one; absolutely near 0."""
    tolerance = _DEFAULT_TOLERANCE if dtype is None else _TOLERANCE.get(dtype, _DEFAULT_TOLERANCE)
    return abs(number - expected) <= tolerance * (abs(expected) or 1.0)


def split_constant(node: ir.Node) -> tuple[ir.Value, float] | None:
    """The other input and the number, of a two-input node with a constant scalar."""
    if len(node.inputs) != 2:
        return None
    first, second = node.inputs
    if first is None or second is None:
        return None
    if (number := scalar(second)) is not None:
        return first, number
    if (number := scalar(first)) is not None:
        return second, number
    return None


@dataclasses.dataclass(frozen=True)
class Line:
    """``value = slope * source + shift``, spelled by ``nodes``."""

    source: ir.Value
    slope: float = 1.0
    shift: float = 0.0
    nodes: _Nodes = ()


def lines(value: ir.Value) -> Iterator[Line]:
    """The value as a line in itself, in what its node reads, and so on up, while that is linear."""
    line = Line(value)
    yield line
    for _ in range(_LONGEST_LINE):
        node = made_by(line.source, *_LINEAR)
        step = None if node is None else _linear(node)
        if node is None or step is None:
            return
        source, slope, shift = step
        line = Line(
            source,
            line.slope * slope,
            line.slope * shift + line.shift,
            (*line.nodes, node),
        )
        if not (math.isfinite(line.slope) and math.isfinite(line.shift)) or line.slope == 0:
            return
        yield line


def leads_to(value: ir.Value | None, *op_types: str) -> bool:
    """Whether `lines` of the value may come to one of these operators; much cheaper than they."""
    for _ in range(_LONGEST_LINE + 1):
        if made_by(value, *op_types) is not None:
            return True
        node = made_by(value, *_LINEAR)
        if node is None:
            return False
        value = node.inputs[-1] if is_constant(node.inputs[0]) else node.inputs[0]
    return False


def _linear(node: ir.Node) -> tuple[ir.Value, float, float] | None:
    """``(source, slope, shift)`` of one node that adds, scales or negates."""
    if node.op_type == "Neg":
        return None if node.inputs[0] is None else (node.inputs[0], -1.0, 0.0)
    split = split_constant(node)
    if split is None:
        return None
    source, number = split
    second = source is node.inputs[0]  # whether the constant is the second input
    match node.op_type:
        case "Add":
            return source, 1.0, number
        case "Sub":
            return (source, 1.0, -number) if second else (source, -1.0, number)
        case "Mul":
            return source, number, 0.0
        case "Div" if second and number != 0:
            return source, 1.0 / number, 0.0
    return None


@dataclasses.dataclass(frozen=True)
class Product:
    """``value = scale * first * second``, neither factor constant, spelled by ``nodes``."""

    scale: float
    first: ir.Value
    second: ir.Value
    nodes: _Nodes

    def orders(self) -> tuple[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]]:
        """The factors in both orders."""
        return (self.first, self.second), (self.second, self.first)


def product(value: ir.Value) -> Product | None:
    """The value as a product of two values that are not constant, times a number."""
    for line in lines(value):
        if line.shift != 0:
            return None
        node = made_by(line.source, "Mul")
        if node is None:
            continue
        first, second = node.inputs
        if first is None or second is None or is_constant(first) or is_constant(second):
            continue
        return Product(line.slope, first, second, (*line.nodes, node))
    return None


#: Coefficients by degree, and the nodes that spell them.
_Polynomial = tuple[tuple[float, ...], _Nodes]


def polynomial(value: ir.Value | None, x: ir.Value, degree: int) -> _Polynomial | None:
    """The value as a polynomial in ``x`` of at most this degree, lowest coefficient first.

    Returns:
        Coefficients and nodes; None when the value depends on anything else.
    """
    return _polynomial(value, x, degree, _DEEPEST_POLYNOMIAL)


def _polynomial(value: ir.Value | None, x: ir.Value, degree: int, depth: int) -> _Polynomial | None:
    if value is x:
        return (0.0, 1.0), ()
    if (number := scalar(value)) is not None:
        return (number,), ()
    node = made_by(value, "Add", "Sub", "Mul", "Div", "Neg", "Pow")
    if node is None or depth == 0:
        return None
    left = _polynomial(node.inputs[0], x, degree, depth - 1)
    if left is None:
        return None
    if node.op_type == "Neg":
        return tuple(-each for each in left[0]), (*left[1], node)
    right = _polynomial(node.inputs[1], x, degree, depth - 1)
    if right is None:
        return None
    combined = _combine(node.op_type, left[0], right[0], degree)
    return None if combined is None else (combined, (*left[1], *right[1], node))


def _combine(
    op_type: str, left: Sequence[float], right: Sequence[float], degree: int
) -> tuple[float, ...] | None:
    match op_type:
        case "Add" | "Sub":
            sign = 1.0 if op_type == "Add" else -1.0
            size = max(len(left), len(right))
            padded = [[*each, *([0.0] * (size - len(each)))] for each in (left, right)]
            return tuple(a + sign * b for a, b in zip(*padded, strict=True))
        case "Mul":
            return _times(left, right, degree)
        case "Div" if len(right) == 1 and right[0] != 0:
            return tuple(each / right[0] for each in left)
        case "Pow" if len(right) == 1 and right[0] in range(1, degree + 1):
            power: tuple[float, ...] | None = (1.0,)
            for _ in range(int(right[0])):
                power = None if power is None else _times(power, left, degree)
            return power
    return None


def _times(left: Sequence[float], right: Sequence[float], degree: int) -> tuple[float, ...] | None:
    if len(left) + len(right) - 2 > degree:
        return None
    result = [0.0] * (len(left) + len(right) - 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            result[i + j] += a * b
    return tuple(result)


def in_the_way(nodes: Iterable[ir.Node], x: ir.Value) -> str | None:
    """Why nodes that compute something from ``x``, the anchor last or first, cannot become one.

    The anchor is the one whose output nobody else in the group reads. Everything in between must
    serve nothing else, and no constant may give the result a higher rank than ``x`` has. All must
    stand in one graph: the body of a loop runs again what the graph around it computes once.
    """
    group = set(nodes)
    if len({node.graph for node in group}) > 1:
        return "the formula reaches over a graph's boundary"
    for node in group:
        inner = [reader for reader in node.outputs[0].consumers() if reader in group]
        if inner and (
            node.outputs[0].is_graph_output()
            or any(reader not in group for reader in node.outputs[0].consumers())
        ):
            return "an intermediate result is used elsewhere"
    return widens(group, x)


def widens(nodes: Iterable[ir.Node], x: ir.Value) -> str | None:
    """Why constants among the inputs may change the shape, or None if they do not."""
    ranks = [
        rank(value) or 0
        for node in nodes
        if has_trait(node, Trait.BROADCAST)
        for value in node.inputs
        if value is not None and is_constant(value)
    ]
    widest = max(ranks, default=0)
    if widest == 0:
        return None
    own = rank(x)
    if own is None:
        return "a constant has a rank and the input's is unknown"
    return "a constant widens the result" if widest > own else None
