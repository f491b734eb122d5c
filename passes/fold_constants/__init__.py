"""Compute what depends on constants only, once, instead of whenever the model runs.

What moves numbers or counts is computed with numpy; everything else in ONNX Runtime, in a child
process that may crash or hang without harm, so that the numbers are the runtime's own; what the
runtime has no kernel for, by ONNX's reference implementation. Thousands of nodes go through one
session.

Exact: the numbers are those that the runtime would compute when it runs the model. The file does
not grow: values are written only where they take no more bytes than what becomes superfluous by
them (nodes, and initializers that nothing else reads). The choice is the cheapest there is, so
where a result is too large, what lies before it is folded. A transposed weight replaces the weight;
a weight widened from float16 to float32, or 16 MB made by Expand, stays computed. Results of up to
``max-bytes`` are always written, since shapes and other passes depend on them; where the whole file
gets larger by that, `optimize` runs the pass again with ``max-bytes=0``.

Left alone: quantization (its grid is information), random operators and Dropout that may train,
control flow itself (nodes inside bodies are folded), strings, sequences and optional values, other
domains, initializers that callers can override, local functions (inline them first). A graph output
that is constant becomes a single ``Constant`` node, since a graph makes its outputs by nodes.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from onnxopt.pass_contract import Outcome, Pass, Refusal
from onnxopt.rewriting import Context, drop_node, drop_unused_initializer, is_dead

from ..shared.held_constants import hold_as_constant
from .choice import choose_values
from .constant_values import ConstantValues
from .region_proto import inputs_of

__all__ = ["FoldConstants"]


@dataclasses.dataclass(frozen=True)
class _Options:
    """Options of `FoldConstants`.

    Attributes:
        max_bytes: Results up to this size are written even where the file gets larger by them.
    """

    max_bytes: int = 1024

    def __post_init__(self) -> None:
        if self.max_bytes < 0:
            raise ValueError("max-bytes must not be negative")


class FoldConstants(Pass):
    """Replace nodes that depend on constants only by their results."""

    name = "fold-constants"
    Options: ClassVar[type] = _Options

    def thrifty(self) -> Pass | None:
        """Write only what takes no more bytes than what goes."""
        return FoldConstants(_Options(max_bytes=0)) if self.options.max_bytes else None

    def run(self, model: ir.Model) -> Outcome:
        """Fold in the main graph and in all bodies of control flow in it."""
        outcome = Outcome(model, False)
        while True:
            constants = ConstantValues(model)
            written = self._fold(model, constants, outcome)
            waiting = _kept(constants)
            # What was written may tell the size of something that was not known before.
            if not written or not (waiting or constants.is_waiting):
                break
        outcome.refusals = [
            Refusal(self.name, reason, node.name or node.op_type)
            for node, reason in (*constants.refused.items(), *waiting)
        ]
        outcome.modified = bool(outcome.rewritten)
        return outcome

    def _fold(self, model: ir.Model, constants: ConstantValues, outcome: Outcome) -> bool:
        """Write what is worth it; say whether that was anything."""
        outcome.matched[self.name] += len(constants.nodes)
        values = choose_values(constants, self.options.max_bytes)
        while not constants.compute(values):
            values = choose_values(constants, self.options.max_bytes)
        if self.max_rewrites is not None:
            values = values[: self.max_rewrites - outcome.rewritten.total()]
        if not values:
            return False
        context = Context(model)
        for value in values:
            node = value.producer()
            assert node is not None
            outcome.rewritten[constants.ways[node]] += 1
            hold_as_constant(value, constants.known[value], context)
        _drop_dead(constants.nodes)
        return True


def _drop_dead(nodes: list[ir.Node]) -> None:
    """Remove folded nodes, and the initializers and Constant nodes that only they read."""
    read: dict[ir.Value, None] = {}
    for node in reversed(nodes):
        if is_dead(node):
            read.update(dict.fromkeys(inputs_of([node])))
            drop_node(node)
    for value in read:
        drop_unused_initializer(value)
        producer = value.producer()
        if producer is not None and producer.op_type == "Constant" and is_dead(producer):
            drop_node(producer)


def _kept(constants: ConstantValues) -> list[tuple[ir.Node, str]]:
    """Constant nodes that stay, where something else reads them."""
    reason = "writing the result would make the file larger"
    return [
        (node, reason) for node in constants.nodes if node.graph is not None and not is_dead(node)
    ]
