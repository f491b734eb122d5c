"""Pow with an exponent that has an operator of its own.

ONNX Runtime computes Pow with the C library's ``pow``, element by element, unless the exponent is 2
or 3: for 1/2 and -1 that is 10 to 40 times slower than Sqrt and Reciprocal.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from onnxopt.rewriting import Context, Rewriter, RewriteRule

from ..shared.spellings import scalar, widens
from ..shared.targets import not_worth

__all__ = ["ReplacePow"]


@dataclasses.dataclass(frozen=True)
class _Power:
    node: ir.Node
    x: ir.Value
    exponent: float


class ReplacePow(RewriteRule[_Power]):
    """``x ** 2`` is x * x, ``x ** 0.5`` Sqrt(x), ``x ** -1`` 1 / x, ``x ** -0.5`` 1 / Sqrt(x).

    The same numbers for finite x, except that the root of -0.0 is -0.0. Infinity differs only in
    ``(-inf) ** 0.5``, which Pow says is inf and Sqrt NaN.

    A square whose mean is taken is left: it may be part of a layer normalization, which the runtime
    finds by its Pow when the opset has no operator for it.
    """

    name = "replace-pow"
    anchors: ClassVar[tuple[str, ...]] = ("Pow",)
    depth = 1

    #: Operators to apply, first to last, by exponent.
    _OPERATORS: ClassVar[dict[float, tuple[str, ...]]] = {
        2.0: ("Mul",),
        0.5: ("Sqrt",),
        -1.0: ("Reciprocal",),
        -0.5: ("Sqrt", "Reciprocal"),
    }

    def match(self, node: ir.Node, context: Context) -> _Power | None:
        x, exponent = node.inputs[0], scalar(node.inputs[1])
        if x is None or exponent not in self._OPERATORS:
            return None
        return _Power(node, x, exponent)

    def check(self, match: _Power, context: Context) -> str | None:
        readers = match.node.outputs[0].consumers()
        if match.exponent == 2.0 and any(each.op_type == "ReduceMean" for each in readers):
            return "it may be part of a layer normalization"
        return not_worth("Mul", match.x, context, match.node) or widens([match.node], match.x)

    def rewrite(self, match: _Power, rewriter: Rewriter) -> None:
        old, new = match.node.outputs[0], match.x
        for op_type in self._OPERATORS[match.exponent]:
            inputs = [new, new] if op_type == "Mul" else [new]
            new = rewriter.op(op_type, inputs, like=old)
        rewriter.replace(old, new)
