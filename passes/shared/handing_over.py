"""Let a value stand for an output of a control-flow node."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.rewriting import Refuse, Rewriter, can_replace

__all__ = ["hand_over", "require_tensors"]


def hand_over(old: ir.Value, new: ir.Value, rewriter: Rewriter) -> None:
    """Let what reads an output of a node read a value, by way of a copy where names must stay."""
    if not old.is_graph_output() and not old.uses():
        return
    if new.type is None:
        new.type = old.type
    if not can_replace(old, new):
        new = rewriter.op("Identity", [new], like=old)
    rewriter.replace(old, new)


def require_tensors(node: ir.Node) -> None:
    """Refuse outputs of the graph that need a copy by Identity, which takes tensors in every opset.

    Raises:
        Refuse: With the reason.
    """
    for output in node.outputs:
        if output.is_graph_output() and not isinstance(output.type, ir.TensorType):
            raise Refuse("an output of the graph is not known to be a tensor")
