"""Drop Casts that a neighbouring Cast makes needless.

With A, B, C element types, ``x: A -> B -> C`` is ``x: A -> C`` in these cases, for every x:

- B holds every number of A (int32 in int64 or double, float16 in float, bool in any number type),
  so the first Cast changes the type and nothing else. If C is A, both Casts go.
- All three are integers and C has no more bits than B: each Cast keeps the low bits (ONNX
  specification, Cast-13, fixed point to fixed point), and the last keeps the fewest.

Reshape, Transpose and their kind compute nothing, so two Casts with such operators between them
meet as well. CastLike is Cast to the element type of its second input, where that is known.

Left alone: a middle type that rounds, wraps or saturates before a wider one (float -> float16 ->
float, int64 -> int32 -> int64, x -> bool -> x), double rounding (double -> float -> float16 is not
double -> float16), negative numbers that reach an unsigned type through a float (undefined in C++),
strings, complex numbers and types of 8 bits or less that are floats, and a middle value that is
read elsewhere.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute
from onnxopt.analysis.values import has_one_use
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Context, RewritePass, Rewriter, RewriteRule, can_replace

__all__ = ["SimplifyCasts"]

#: Integer types: bits, and whether they are signed.
_INTEGERS: dict[ir.DataType, tuple[int, bool]] = {
    ir.DataType.INT8: (8, True),
    ir.DataType.INT16: (16, True),
    ir.DataType.INT32: (32, True),
    ir.DataType.INT64: (64, True),
    ir.DataType.UINT8: (8, False),
    ir.DataType.UINT16: (16, False),
    ir.DataType.UINT32: (32, False),
    ir.DataType.UINT64: (64, False),
}
#: Float types: bits of precision with the hidden one, and bits of the exponent.
_FLOATS: dict[ir.DataType, tuple[int, int]] = {
    ir.DataType.FLOAT16: (11, 5),
    ir.DataType.BFLOAT16: (8, 8),
    ir.DataType.FLOAT: (24, 8),
    ir.DataType.DOUBLE: (53, 11),
}
_KNOWN = frozenset({ir.DataType.BOOL, *_INTEGERS, *_FLOATS})

#: Operators that compute nothing and take every element type in the runtime.
_MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_MOST_MOVES = 6


def _holds(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Whether every number of one type is a number of the other."""
    if wide == narrow:
        return True
    if wide == ir.DataType.BOOL:
        return False
    if narrow == ir.DataType.BOOL:
        return True
    if narrow in _FLOATS:
        if wide not in _FLOATS:
            return False
        return all(more >= less for more, less in zip(_FLOATS[wide], _FLOATS[narrow], strict=True))
    bits, signed = _INTEGERS[narrow]
    magnitude = bits - signed
    if wide in _FLOATS:
        precision, exponent = _FLOATS[wide]
        return magnitude <= precision and magnitude < 2 ** (exponent - 1)
    wide_bits, wide_signed = _INTEGERS[wide]
    return magnitude <= wide_bits - wide_signed and (wide_signed or not signed)


def _why_not_direct(first: ir.DataType, middle: ir.DataType, last: ir.DataType) -> str | None:
    """Why first -> middle -> last is not first -> last for every number, or None when it is."""
    if not {first, middle, last} <= _KNOWN:
        return "an element type is not a plain number"
    integers = all(dtype in _INTEGERS for dtype in (first, middle, last))
    if integers and _INTEGERS[last][0] <= _INTEGERS[middle][0]:
        return None
    if not _holds(middle, first):
        return "the type between loses numbers"
    if last in _INTEGERS and middle in _FLOATS and first in _INTEGERS and not _holds(last, first):
        return "numbers out of range pass through a float"
    return None


@dataclasses.dataclass(frozen=True)
class _Chain:
    """Cast, operators that only move elements, Cast; upstream first."""

    first: ir.Node
    moves: tuple[ir.Node, ...]
    last: ir.Node

    @property
    def source(self) -> ir.Value:
        value = self.first.inputs[0]
        assert value is not None
        return value


def _is_cast(node: ir.Node) -> bool:
    return node.op_type == "Cast" and is_standard(node) and node.inputs[0] is not None


def _target(cast: ir.Node) -> ir.DataType:
    return ir.DataType(int_attribute(cast, "to", 0))


class _MergeCasts(RewriteRule[_Chain]):
    """One Cast, or none, in place of two."""

    name = "merge-casts"
    anchors: ClassVar[tuple[str, ...]] = ("Cast",)
    depth: ClassVar[int] = _MOST_MOVES + 1

    def match(self, node: ir.Node, context: Context) -> _Chain | None:
        moves: list[ir.Node] = []
        value = node.inputs[0]
        while value is not None and len(moves) <= _MOST_MOVES:
            producer = value.producer()
            if producer is None or not is_standard(producer):
                return None
            if _is_cast(producer):
                return _Chain(producer, tuple(reversed(moves)), node)
            if producer.op_type not in _MOVES:
                return None
            moves.append(producer)
            value = producer.inputs[0]
        return None

    def check(self, match: _Chain, context: Context) -> str | None:
        source = match.source.dtype
        if source is None:
            return "the element type is not known"
        middle, last = _target(match.first), _target(match.last)
        reason = _why_not_direct(source, middle, last)
        if reason is not None:
            return reason
        if match.first.graph is not match.last.graph:
            return "the casts stand in different graphs"
        if match.moves or source != last:
            between = [match.first.outputs[0], *(move.outputs[0] for move in match.moves)]
            if not all(has_one_use(value) for value in between):
                return "the value between is read elsewhere"
            return None
        if not can_replace(match.last.outputs[0], match.source):
            return "it names a graph output that is made elsewhere"
        return None

    def rewrite(self, match: _Chain, rewriter: Rewriter) -> None:
        output, last = match.last.outputs[0], _target(match.last)
        value = match.source
        if value.dtype != last:
            attributes = {"to": int(last)}
            # How the last Cast rounds and saturates is about its target, and stays.
            for name in ("saturate", "round_mode"):
                if name in match.last.attributes:
                    attributes[name] = match.last.attributes[name].value
            shape_like = match.first.outputs[0]
            value = rewriter.op("Cast", [value], attributes, like=shape_like)
            value.type = ir.TensorType(last)
        for move in match.moves:
            inputs = [value, *move.inputs[1:]]
            value = rewriter.op(move.op_type, inputs, dict(move.attributes), like=move.outputs[0])
            value.type = ir.TensorType(last)
        rewriter.replace(output, value)


class _CastLikeIsCast(RewriteRule[ir.Node]):
    """CastLike to a known element type is Cast."""

    name = "write-cast"
    anchors: ClassVar[tuple[str, ...]] = ("CastLike",)

    def match(self, node: ir.Node, context: Context) -> ir.Node | None:
        return node

    def check(self, match: ir.Node, context: Context) -> str | None:
        like = match.inputs[1]
        if context.in_function(match):
            return "the element type depends on who calls the function"
        if like is None or like.dtype is None:
            return "the element type is not known"
        return None

    def rewrite(self, match: ir.Node, rewriter: Rewriter) -> None:
        like, output = match.inputs[1], match.outputs[0]
        assert like is not None
        assert like.dtype is not None
        attributes = {"to": int(like.dtype), **match.attributes}
        rewriter.replace(output, rewriter.op("Cast", [match.inputs[0]], attributes, like=output))


class SimplifyCasts(RewritePass):
    """Drop Casts that a neighbouring Cast makes needless."""

    name = "simplify-casts"

    def rules(self) -> list[RewriteRule[Any]]:
        """CastLike becomes Cast first, so that it can merge."""
        return [_CastLikeIsCast(), _MergeCasts()]
