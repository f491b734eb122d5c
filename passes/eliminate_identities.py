"""Remove Identity nodes and Dropout that does not train.

``Identity(x) = x``, and Dropout outside training is Identity too (ONNX specification, Dropout-13);
its mask is then all true, so it goes only when nobody reads the mask.

Left alone: an Identity between a graph input (or an initializer, or a value of an outer graph) and
a graph output, since outputs keep their names and a graph must make its outputs itself; Dropout
that may train.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxopt.op_traits import dropout_may_train
from onnxopt.rewriting import Context, RewritePass, Rewriter, RewriteRule, can_replace

__all__ = ["EliminateIdentities"]


class _ForwardInput(RewriteRule[ir.Node]):
    """Let readers of the output read the input."""

    name = "forward-identity"
    anchors: ClassVar[tuple[str, ...]] = ("Identity", "Dropout")

    def match(self, node: ir.Node, context: Context) -> ir.Node | None:
        if node.op_type == "Dropout" and len(node.outputs) > 1 and node.outputs[1].uses():
            return None
        return node

    def check(self, match: ir.Node, context: Context) -> str | None:
        if match.op_type == "Dropout":
            if dropout_may_train(match):
                return "Dropout may train"
            if len(match.outputs) > 1 and match.outputs[1].is_graph_output():
                return "the mask is a graph output"
        source = match.inputs[0]
        if source is None:
            return "the input is missing"
        if not can_replace(match.outputs[0], source):
            return "it names a graph output that is made elsewhere"
        return None

    def rewrite(self, match: ir.Node, rewriter: Rewriter) -> None:
        source = match.inputs[0]
        assert source is not None
        rewriter.replace(match.outputs[0], source)


class EliminateIdentities(RewritePass):
    """Remove Identity nodes and Dropout that does not train."""

    name = "eliminate-identities"

    def rules(self) -> list[RewriteRule[ir.Node]]:
        """The one rule."""
        return [_ForwardInput()]
