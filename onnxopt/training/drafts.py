"""Steps that are not final: what they make, who reads it, and what is left of them in the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import onnx_ir as ir

from onnxopt.training.program import AnyStep, Step
from onnxopt.traversal import all_nodes, bodies

__all__ = ["Draft", "Scope", "described", "finished", "needed"]


@dataclasses.dataclass
class Draft:
    """A step that is not final.

    Attributes:
        step: The step.
        in_place: Does the same in the memory of the first input.
        fresh: Whether its output may be overwritten by its only reader.
    """

    step: AnyStep
    in_place: Callable[..., Any] | None = None
    fresh: bool = False


class Scope:
    """Where the values of a graph are; a body sees those around it."""

    def __init__(self, outer: Scope | None = None) -> None:
        self.tensors: dict[ir.Value, int] = {} if outer is None else dict(outer.tensors)
        self.hosts: dict[ir.Value, int] = {} if outer is None else dict(outer.hosts)
        self.drafts: list[Draft] = []


def needed(graph: ir.Graph, outputs: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes of a graph that some values depend on."""
    found: set[ir.Node] = set()
    pending = [value.producer() for value in outputs]
    while pending:
        node = pending.pop()
        if node is None or node in found or node.graph is not graph:
            continue
        found.add(node)
        pending.extend(value.producer() for value in node.inputs if value is not None)
        for body in bodies(node):
            pending.extend(value.producer() for value in body.outputs)
            for inner in all_nodes(body):
                pending.extend(value.producer() for value in inner.inputs if value is not None)
    return found


def finished(drafts: Sequence[Draft], results: Sequence[int]) -> tuple[AnyStep, ...]:
    """Leave out what nobody reads, work in place where that is safe, and free what is done with."""
    wanted, kept = set(results), []
    for draft in reversed(drafts):
        if wanted.isdisjoint(draft.step.outputs):
            continue
        wanted.update(draft.step.reads)
        kept.append(draft)
    kept.reverse()
    readers: dict[int, int] = {}
    for draft in kept:
        for slot in draft.step.reads:
            readers[slot] = readers.get(slot, 0) + 1
    fresh = {slot for draft in kept if draft.fresh for slot in draft.step.outputs}
    own = {slot for draft in kept for slot in draft.step.outputs}
    last: dict[int, int] = {}
    for place, draft in enumerate(kept):
        for slot in (*draft.step.outputs, *draft.step.reads):
            last[slot] = place
    freed: list[list[int]] = [[] for _ in kept]
    for slot, place in last.items():
        if slot in own and slot not in results:
            freed[place].append(slot)
    steps: list[AnyStep] = []
    for draft, slots in zip(kept, freed, strict=True):
        step = dataclasses.replace(draft.step, finished=tuple(slots))
        if draft.in_place is not None and isinstance(step, Step):
            source = step.inputs[0]
            if source in fresh and readers[source] == 1 and source not in results:
                step = dataclasses.replace(step, function=draft.in_place)
        steps.append(step)
    return tuple(steps)


def described(node: ir.Node) -> str:
    """A node in words, for messages."""
    if node.name:
        return f"{node.op_type} '{node.name}'"
    made = next((value.name for value in node.outputs if value.name), None)
    return node.op_type if made is None else f"{node.op_type} that makes '{made}'"
