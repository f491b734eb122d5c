"""Take out of a Loop what does not change in it, and what nobody reads of it.

- A carried value that every iteration hands on as it got it is its initial value, in all iterations
  and after the last one; the body reads that from outside. Exporters of Keras hand the weights of
  recurrent layers through like this, where no other pass can see that they are constants.
- A scan output that nobody reads is not collected.

Exact, also for a Loop that runs no iteration. Left alone: an initial value whose name the body uses
for something else, and which it could therefore not read; a carried value that is an output of the
body in another place too; a Loop that nobody reads.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from onnxopt.rewriting import Context, Refuse, RewritePass, Rewriter, RewriteRule
from onnxopt.traversal import all_graphs

from .shared.handing_over import hand_over, require_tensors

__all__ = ["SimplifyLoops"]


@dataclasses.dataclass
class _Loop:
    """A Loop, and which of its outputs are not needed.

    Attributes:
        node: The node.
        body: Its body.
        constant: Places of carried values that do not change.
        unread: Places of scan outputs that nobody reads.
    """

    node: ir.Node
    body: ir.Graph
    constant: list[int]
    unread: list[int]


def _carried(node: ir.Node) -> int:
    """How many values a Loop carries from one iteration to the next."""
    return len(node.inputs) - 2


def _body(node: ir.Node) -> ir.Graph:
    attribute = node.attributes.get("body")
    if attribute is None or attribute.is_ref():
        raise Refuse("the body is a parameter of the function")
    body = attribute.as_graph()
    if (
        len(body.inputs) != len(node.inputs)
        or len(body.outputs) != len(node.outputs) + 1
        or len(node.outputs) < _carried(node)
    ):
        raise Refuse("the body has another number of inputs or outputs")
    return body


def _origin(value: ir.Value) -> ir.Value:
    """The value that a chain of Identity nodes begins with."""
    while (node := value.producer()) is not None and node.op_type == "Identity" and not node.domain:
        source = node.inputs[0]
        if source is None:
            break
        value = source
    return value


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _names(body: ir.Graph) -> set[str | None]:
    """Names that the body and the bodies in it give to values."""
    found: set[str | None] = set()
    for graph in all_graphs(body):
        found.update(value.name for value in (*graph.inputs, *graph.initializers.values()))
        found.update(output.name for node in graph for output in node.outputs)
    return found


class _TakeOut(RewriteRule[_Loop]):
    name = "take-out-of-loop"
    anchors: ClassVar[tuple[str, ...]] = ("Loop",)

    def match(self, node: ir.Node, context: Context) -> _Loop | None:
        if not any(_is_read(output) for output in node.outputs):
            return None
        body, carried = _body(node), _carried(node)
        constant = [
            index
            for index in range(carried)
            if _origin(body.outputs[1 + index]) is body.inputs[2 + index]
        ]
        unread = [
            index
            for index in range(carried, len(node.outputs))
            if not _is_read(node.outputs[index])
        ]
        if not constant and not unread:
            return None
        return _Loop(node, body, constant, unread)

    def check(self, match: _Loop, context: Context) -> str | None:
        outputs = list(match.body.outputs)
        own_names = _names(match.body) if match.constant else set()
        for index in match.constant:
            initial, inner = match.node.inputs[2 + index], match.body.inputs[2 + index]
            if initial is None:
                return "an initial value is missing"
            if initial.name in own_names:
                return "the body uses the name of the initial value for something else"
            if outputs.count(inner) > (outputs[1 + index] is inner):
                return "a carried value is another output of the body too"
        require_tensors(match.node)
        return None

    def rewrite(self, match: _Loop, rewriter: Rewriter) -> None:
        node, body = match.node, match.body
        for index in match.constant:
            initial = node.inputs[2 + index]
            assert initial is not None
            hand_over(node.outputs[index], initial, rewriter)
        gone = {*match.constant, *match.unread}
        kept = [index for index in range(len(node.outputs)) if index not in gone]
        if not kept:
            return  # nobody reads the node any more
        inputs = [value for at, value in enumerate(node.inputs) if at - 2 not in match.constant]
        for index in sorted(gone, reverse=True):
            body.outputs.pop(1 + index)
        for index in sorted(match.constant, reverse=True):
            inner, initial = body.inputs[2 + index], node.inputs[2 + index]
            assert initial is not None
            body.inputs.pop(2 + index)
            inner.replace_all_uses_with(initial)
        node.attributes.pop("body")
        fresh = rewriter.ops("Loop", inputs, {"body": body}, len(kept))
        for index, output in zip(kept, fresh, strict=True):
            if _is_read(node.outputs[index]):
                rewriter.replace(node.outputs[index], output)


class SimplifyLoops(RewritePass):
    """Take out of a Loop what does not change in it, and what nobody reads of it."""

    name = "simplify-loops"

    def rules(self) -> list[RewriteRule[_Loop]]:
        """The one rule."""
        return [_TakeOut()]
