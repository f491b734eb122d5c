"""A pass outside onnxopt: what a package of yours needs, and nothing more."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from onnxopt.rewriting import Context, RewritePass, Rewriter, RewriteRule


@dataclasses.dataclass(frozen=True)
class ExampleOptions:
    """Options of `CancelNegations`.

    Attributes:
        in_bodies: Whether to rewrite the bodies of control flow, too.
    """

    in_bodies: bool = True


class _Cancel(RewriteRule[ir.Value]):
    """-(-x) = x."""

    name = "cancel-negations"
    anchors: ClassVar[tuple[str, ...]] = ("Neg",)
    depth = 1

    def __init__(self, options: ExampleOptions) -> None:
        self._options = options

    def match(self, node: ir.Node, context: Context) -> ir.Value | None:
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        if inner is None or inner.op_type != "Neg" or node.outputs[0].is_graph_output():
            return None
        if node.graph is not context.model.graph and not self._options.in_bodies:
            return None
        self._outer = node.outputs[0]
        return inner.inputs[0]

    def rewrite(self, match: ir.Value, rewriter: Rewriter) -> None:
        rewriter.replace(self._outer, match)


class CancelNegations(RewritePass):
    """Let two Neg in a row be none: -(-x) = x, which is exact in every type.

    Leaves alone: a pair whose result is an output of its graph.
    """

    name = "example-cancel-negations"
    Options: ClassVar[type] = ExampleOptions

    def rules(self) -> Sequence[RewriteRule[Any]]:
        """The one rule."""
        return [_Cancel(self.options)]


PASSES = {"example-cancel-negations": CancelNegations}
