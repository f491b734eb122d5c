"""Find GELU that is spelled out, and use the operator Gelu (opset 20 and later).

``x/2 * (1 + erf(x / sqrt(2)))`` is Gelu(x), and with ``s = sqrt(2 / pi)``
``x/2 * (1 + tanh(s * (x + 0.044715 * x**3)))`` is Gelu(x, approximate=tanh), with the factors in
any order and the polynomial spelled any way (Hendrycks and Gimpel, Gaussian Error Linear Units,
2016).

Exact, up to rounding; constants may differ by 1e-5 relative (1e-3 in float16).

Left alone: opsets before 20, where ONNX Runtime fuses the erf form itself when it loads the model;
the tanh form in float16, for which the runtime on CPU has no kernel and a slow expansion (0.25x);
all of double, likewise; ``x * sigmoid(1.702 * x)``, which the runtime fuses itself and which no
standard operator computes. With a bias added before, the runtime still fuses Add and Gelu into one
kernel.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import onnx_ir as ir

from onnxopt.rewriting import Context, RewritePass, Rewriter, RewriteRule

from .shared.spellings import close, in_the_way, leads_to, lines, made_by, polynomial, product
from .shared.targets import available

__all__ = ["FuseGelu"]

_ERF_SLOPE = 1 / math.sqrt(2)
_TANH_SLOPE = math.sqrt(2 / math.pi)
_CUBIC = 0.044715

_Nodes = tuple[ir.Node, ...]


@dataclasses.dataclass(frozen=True)
class _Gelu:
    x: ir.Value
    approximate: str
    nodes: _Nodes


class _FuseGelu(RewriteRule[_Gelu]):
    """``x/2 * (1 + s(x))`` with s by erf or tanh."""

    name = "fuse-gelu"
    anchors: ClassVar[tuple[str, ...]] = ("Mul", "Div")
    depth = 10

    def match(self, node: ir.Node, context: Context) -> _Gelu | None:
        whole = product(node.outputs[0])
        if whole is None:
            return None
        for gate, factor in whole.orders():
            if not leads_to(gate, "Erf", "Tanh"):
                continue
            for outer in lines(gate):
                curve = made_by(outer.source, "Erf", "Tanh")
                if curve is None:
                    continue
                for own in lines(factor):
                    if own.shift != 0:
                        break
                    scale = whole.scale * own.slope
                    sign = math.copysign(1.0, scale * outer.slope)
                    inner = _argument(curve, own.source, sign)
                    if (
                        inner is not None
                        and close(scale * outer.slope, sign * 0.5, own.source.dtype)
                        and close(scale * outer.shift, 0.5, own.source.dtype)
                    ):
                        nodes = (*whole.nodes, *own.nodes, *outer.nodes, curve, *inner)
                        approximate = "none" if curve.op_type == "Erf" else "tanh"
                        return _Gelu(own.source, approximate, nodes)
                break
        return None

    def check(self, match: _Gelu, context: Context) -> str | None:
        if not available("Gelu", context, match.nodes[0]):
            return "the opset has no Gelu"
        dtype = match.x.dtype
        if dtype is None:
            return "the element type is unknown"
        gains = {ir.DataType.FLOAT}
        if match.approximate == "none":
            gains.add(ir.DataType.FLOAT16)
        if dtype not in gains:
            return f"Gelu ({match.approximate}) does not gain for {dtype.name.lower()}"
        return in_the_way(match.nodes, match.x)

    def rewrite(self, match: _Gelu, rewriter: Rewriter) -> None:
        old = match.nodes[0].outputs[0]
        attributes = {} if match.approximate == "none" else {"approximate": match.approximate}
        rewriter.replace(old, rewriter.op("Gelu", [match.x], attributes, like=old))


def _argument(curve: ir.Node, x: ir.Value, sign: float) -> _Nodes | None:
    """The nodes between x and the curve, when they spell the argument that GELU has.

    Both curves are odd, so that ``1 - erf(-z)`` is ``1 + erf(z)``: with sign -1 the argument is
    the negative one.
    """
    spelled = polynomial(curve.inputs[0], x, 1 if curve.op_type == "Erf" else 3)
    if spelled is None:
        return None
    found, nodes = spelled
    expected: tuple[float, ...] = (0.0, _ERF_SLOPE)
    if curve.op_type == "Tanh":
        expected = (0.0, _TANH_SLOPE, 0.0, _TANH_SLOPE * _CUBIC)
    if len(found) != len(expected):
        return None
    same = all(close(a, sign * b, x.dtype) for a, b in zip(found, expected, strict=True))
    return nodes if same else None


class FuseGelu(RewritePass):
    """Use Gelu where it is spelled out."""

    name = "fuse-gelu"

    def rules(self) -> list[RewriteRule[_Gelu]]:
        """The one rule, for both forms."""
        return [_FuseGelu()]
