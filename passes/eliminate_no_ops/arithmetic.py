"""Element by element: neutral operands, single operands, and functions that undo or repeat.

The identities hold for all finite numbers, for infinities and NaN too; only the sign of a zero may
change (``-0.0 + 0 = 0``).
"""

from __future__ import annotations

from typing import Any, ClassVar

import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute
from onnxopt.analysis.filled import broadcasts_into, is_filled_with
from onnxopt.rewriting import Context, Refuse, Rewriter, RewriteRule

from .forwarding import ForwardingRule, made_by

__all__ = ["ARITHMETIC_RULES"]

_GROWS = "an operand may broadcast the other to a larger shape"


class _NeutralOperand(ForwardingRule):
    """``x + 0``, ``x - 0``, ``x * 1``, ``x / 1``, ``x ** 1``, ``x and true`` and their kin."""

    name = "neutral-operand"
    #: The neutral number, and at which inputs it is neutral.
    _neutral: ClassVar[dict[str, tuple[int, tuple[int, ...]]]] = {
        "Add": (0, (1, 0)),
        "Sub": (0, (1,)),
        "Mul": (1, (1, 0)),
        "Div": (1, (1,)),
        "Pow": (1, (1,)),
        "PRelu": (1, (1,)),
        "And": (1, (1, 0)),
        "Or": (0, (1, 0)),
        "Xor": (0, (1, 0)),
        "BitShift": (0, (1,)),
        "BitwiseOr": (0, (1, 0)),
        "BitwiseXor": (0, (1, 0)),
    }
    anchors: ClassVar[tuple[str, ...]] = tuple(_neutral)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        number, places = self._neutral[node.op_type]
        grows = False
        for place in places:
            source, operand = node.inputs[1 - place], node.inputs[place]
            if source is not None and is_filled_with(operand, number):
                if broadcasts_into(operand, source):
                    return source
                grows = True
        if grows:
            raise Refuse(_GROWS)
        return None


class _OneOperand(ForwardingRule):
    """Sum, Mean, Max, Min and Concat of a single tensor."""

    name = "single-operand"
    anchors: ClassVar[tuple[str, ...]] = ("Sum", "Mean", "Max", "Min", "Concat")

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        return node.inputs[0] if len(node.inputs) == 1 else None


class _EqualOperands(ForwardingRule):
    """``max(x, x)``, ``x and x`` and their kin; Where between a value and itself."""

    name = "equal-operands"
    anchors: ClassVar[tuple[str, ...]] = (
        "Max",
        "Min",
        "And",
        "Or",
        "BitwiseAnd",
        "BitwiseOr",
        "Where",
    )

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        operands = node.inputs[1:] if node.op_type == "Where" else node.inputs
        source = operands[0]
        if source is None or len(operands) < 2 or any(each is not source for each in operands):
            return None
        if node.op_type == "Where" and not broadcasts_into(node.inputs[0], source):
            raise Refuse(_GROWS)
        return source


class _ConstantCondition(ForwardingRule):
    """Where whose condition is true, or false, everywhere."""

    name = "constant-condition"
    anchors: ClassVar[tuple[str, ...]] = ("Where",)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        condition, first, second = node.inputs
        if is_filled_with(condition, True):
            taken, other = first, second
        elif is_filled_with(condition, False):
            taken, other = second, first
        else:
            return None
        if taken is None:
            return None
        if not broadcasts_into(condition, taken) or not broadcasts_into(other, taken):
            raise Refuse(_GROWS)
        return taken


class _Involution(ForwardingRule):
    """``f(f(x)) = x``."""

    name = "involution"
    anchors: ClassVar[tuple[str, ...]] = ("Not", "Neg", "BitwiseNot")

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        inner = made_by(node.inputs[0], node.op_type)
        return inner.inputs[0] if inner is not None else None


class _Settled(ForwardingRule):
    """``f(g(x)) = g(x)``: what g gives is left alone by f, as when both are Relu."""

    name = "repeated-function"
    _non_negative: ClassVar[tuple[str, ...]] = (
        "Relu",
        "Abs",
        "Exp",
        "Sqrt",
        "Sigmoid",
        "HardSigmoid",
        "Softplus",
        "Softmax",
    )
    _whole: ClassVar[tuple[str, ...]] = ("Floor", "Ceil", "Round", "Sign")
    _settled: ClassVar[dict[str, tuple[str, ...]]] = {
        "Relu": _non_negative,
        "Abs": _non_negative,
        "Floor": _whole,
        "Ceil": _whole,
        "Round": _whole,
        "Sign": ("Sign",),
    }
    anchors: ClassVar[tuple[str, ...]] = tuple(_settled)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        source = node.inputs[0]
        return source if made_by(source, *self._settled[node.op_type]) is not None else None


class _SameType(ForwardingRule):
    """Cast, or CastLike, to the type that the value has."""

    name = "cast-to-same-type"
    anchors: ClassVar[tuple[str, ...]] = ("Cast", "CastLike")

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        source = node.inputs[0]
        if source is None:
            return None
        target = _target_type(node)
        if target is None:
            raise Refuse("the type to cast to is not known")
        if source.dtype is None:
            raise Refuse("the element type of the input is not known")
        return source if source.dtype == target else None


class _CastToKnownType(RewriteRule[ir.Node]):
    """CastLike is Cast where the type is known; the value that only lent its type is set free."""

    name = "cast-like-known-type"
    anchors: ClassVar[tuple[str, ...]] = ("CastLike",)

    def match(self, node: ir.Node, context: Context) -> ir.Node | None:
        return node if _target_type(node) is not None else None

    def rewrite(self, match: ir.Node, rewriter: Rewriter) -> None:
        target = _target_type(match)
        assert target is not None
        attributes = {**match.attributes, "to": ir.AttrInt64("to", target)}
        cast = rewriter.op("Cast", [match.inputs[0]], attributes, like=match.outputs[0])
        rewriter.replace(match.outputs[0], cast)


def _target_type(node: ir.Node) -> ir.DataType | None:
    if node.op_type == "Cast":
        number = int_attribute(node, "to", 0)
        return ir.DataType(number) if number else None
    like = node.inputs[1]
    return like.dtype if like is not None else None


class _NoBounds(ForwardingRule):
    """Clip of whole numbers without bounds. Of floats it turns infinities into the largest."""

    name = "clip-without-bounds"
    anchors: ClassVar[tuple[str, ...]] = ("Clip",)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        source = node.inputs[0]
        if source is None or node.attributes or any(each is not None for each in node.inputs[1:]):
            return None
        if source.dtype is None or not source.dtype.is_integer():
            raise Refuse("a Clip without bounds still limits infinities")
        return source


#: In the order in which they are tried.
ARITHMETIC_RULES: tuple[RewriteRule[Any], ...] = (
    _NeutralOperand(),
    _OneOperand(),
    _EqualOperands(),
    _ConstantCondition(),
    _Involution(),
    _Settled(),
    _SameType(),
    _CastToKnownType(),
    _NoBounds(),
)
