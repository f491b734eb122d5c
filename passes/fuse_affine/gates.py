"""The rule for a tensor that is added to its own gated self, as in squeeze and excitation."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis import values
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Context, Rewriter, RewriteRule

__all__ = ["FactorGate"]


@dataclasses.dataclass
class _Gate:
    node: ir.Node
    whole: ir.Value
    gate: ir.Value


class FactorGate(RewriteRule[_Gate]):
    """x + x g = x (g + 1), when g is smaller than x: the sum then runs over g alone."""

    name = "factor-gate"
    anchors: ClassVar[tuple[str, ...]] = ("Add",)

    def match(self, node: ir.Node, context: Context) -> _Gate | None:
        for whole, product in (tuple(node.inputs), tuple(node.inputs)[::-1]):
            inner = product.producer() if product is not None else None
            if whole is None or inner is None or inner.op_type != "Mul" or not is_standard(inner):
                continue
            others = [value for value in inner.inputs if value is not whole]
            if len(others) == 1 and others[0] is not None:
                return _Gate(node, whole, others[0])
        return None

    def check(self, match: _Gate, context: Context) -> str | None:
        product = next(value for value in match.node.inputs if value is not match.whole)
        if product is None or not values.has_one_use(product):
            return "something else reads the product"
        producer = product.producer()
        if producer is None or producer.graph is not match.node.graph:
            return "the product stands in another graph"
        if not values.is_float(match.gate) or values.is_constant(match.gate):
            return "the factor is not a float that is only known when the model runs"
        whole, gate = values.dims(match.whole), values.dims(match.gate)
        if whole is None or gate is None or len(whole) != len(gate):
            return "the factor is not known to be smaller"
        pairs = list(zip(gate, whole, strict=True))
        if not all(small == 1 or values.same_dim(small, large) for small, large in pairs):
            return "the factor is not known to be smaller"
        if not any(small == 1 != large for small, large in pairs):
            return "the factor is not known to be smaller"
        return None

    def rewrite(self, match: _Gate, rewriter: Rewriter) -> None:
        assert match.gate.dtype is not None
        output = match.node.outputs[0]
        one = rewriter.initializer(np.array(1, match.gate.dtype.numpy()), f"{output.name}_one")
        gate = rewriter.op("Add", [match.gate, one], like=match.gate)
        rewriter.replace(output, rewriter.op("Mul", [match.whole, gate], like=output))
