"""What rules that replace an output by an equal value have in common."""

from __future__ import annotations

import abc
from typing import NamedTuple

import onnx_ir as ir

from onnxopt.analysis.values import same_shape
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Context, Rewriter, RewriteRule, can_replace

__all__ = ["Forwarding", "ForwardingRule", "inferred_to_stay", "made_by"]


class Forwarding(NamedTuple):
    """An output and the value that is equal to it."""

    output: ir.Value
    source: ir.Value


class ForwardingRule(RewriteRule[Forwarding]):
    """Let everything that reads a node's first output read an equal value instead."""

    @abc.abstractmethod
    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        """The value that certainly equals the first output, in numbers, type and shape.

        None when the node does something; raises `Refuse` when only its shape or a constant that
        is not known stands in the way.
        """

    def match(self, node: ir.Node, context: Context) -> Forwarding | None:
        """Look for the equal value."""
        source = self.find(node, context)
        return None if source is None else Forwarding(node.outputs[0], source)

    def check(self, match: Forwarding, context: Context) -> str | None:
        """Outputs of a graph keep their names and are made in it; so does the element type."""
        output, source = match
        if output.dtype is not None and source.dtype is not None and output.dtype != source.dtype:
            return "the element type would change"
        if not can_replace(output, source):
            return "it names a graph output that is made elsewhere"
        return None

    def rewrite(self, match: Forwarding, rewriter: Rewriter) -> None:
        """Forward."""
        rewriter.replace(match.output, match.source)


def inferred_to_stay(output: ir.Value, source: ir.Value) -> bool:
    """Whether shape inference knows that a node's output has the shape of its input.

    The shape of a graph output is no proof: it is what the author of the model wrote down.
    """
    return not output.is_graph_output() and same_shape(output, source)


def made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes the value, if it is a standard one of these operators."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in op_types or not is_standard(node):
        return None
    return node
