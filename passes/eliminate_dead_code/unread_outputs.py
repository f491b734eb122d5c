"""Outputs that nobody reads, of nodes that stay for the sake of the others."""

from __future__ import annotations

from collections.abc import Callable, MutableSequence, Sequence
from typing import NamedTuple

import onnx_ir as ir

from onnxopt.op_traits import is_standard
from onnxopt.traversal import bodies

__all__ = ["drop_outputs", "is_unread", "outputs_to_keep", "releasable", "release"]

#: Operators whose outputs may be left out without a change to the others, and the first that may.
#: Not among them: BatchNormalization, whose number of outputs once said whether it trains, and
#: Attention, whose caches come in pairs.
_OPTIONAL = {
    "Dropout": 1,
    "MaxPool": 1,
    "LayerNormalization": 1,
    "Unique": 1,
    "LSTM": 0,
    "GRU": 0,
    "RNN": 0,
}
#: Scan had another signature before.
_SCAN_SINCE = 9


def is_unread(value: ir.Value) -> bool:
    """Whether no node and no caller of the graph reads the value."""
    return not value.is_graph_output() and not value.uses()


def releasable(node: ir.Node) -> list[ir.Value]:
    """Optional outputs that nobody reads, of a node that is known to do without."""
    first = _OPTIONAL.get(node.op_type) if is_standard(node) else None
    if first is None:
        return []
    named = [value for value in node.outputs if value.name]
    unread = [value for value in node.outputs[first:] if value.name and is_unread(value)]
    return unread if len(unread) < len(named) else []


def release(node: ir.Node, outputs: Sequence[ir.Value]) -> None:
    """Leave optional outputs out; the runtime need not compute them then."""
    for value in outputs:
        value.name = ""
    length = len(node.outputs)
    while not node.outputs[length - 1].name:
        length -= 1
    node.resize_outputs(length)


def outputs_to_keep(node: ir.Node, opset: int, has_effects: Callable[[ir.Node], bool]) -> list[int]:
    """Which outputs of an If, Loop or Scan something depends on.

    A state that a Loop or Scan carries from one turn to the next is kept when its last value is
    read, or when something else that is kept depends on it.

    Args:
        node: A node that holds graphs.
        opset: The opset of its graph.
        has_effects: Whether a node does more than compute its outputs.
    """
    everything = list(range(len(node.outputs)))
    read = [index for index in everything if not is_unread(node.outputs[index])]
    understood = (
        node.op_type in ("If", "Loop", "Scan")
        and is_standard(node)
        and not any(attribute.is_ref() for attribute in node.attributes.values())
    )
    if not understood or not read or len(read) == len(everything):
        return everything
    if node.op_type == "If":
        return read
    if node.op_type == "Scan" and opset < _SCAN_SINCE:
        return everything
    (body,) = bodies(node)
    signature = _signature(node)
    results = body.outputs[signature.extra_outputs :]
    roots = [*body.outputs[: signature.extra_outputs], *(results[index] for index in read)]
    for inner in body:
        if has_effects(inner):
            roots.extend(inner.outputs)
    states = body.inputs[signature.extra_inputs :][: signature.states]
    return _reached(set(read), roots, states, results)


def drop_outputs(node: ir.Node, kept: Sequence[int]) -> ir.Node:
    """Take all but these outputs out of an If, Loop or Scan and out of its bodies.

    Returns:
        The node that takes its place.
    """
    if node.op_type == "If":
        for body in bodies(node):
            _keep(body.outputs, kept)
        return _with(node, node.inputs, kept)
    (body,) = bodies(node)
    signature = _signature(node)
    for name in ("scan_output_axes", "scan_output_directions"):
        if name in node.attributes:
            given = node.attributes[name].as_ints()
            left = [given[each - signature.states] for each in kept if each >= signature.states]
            node.attributes[name] = ir.AttrInt64s(name, left)
    first = signature.extra_inputs
    after = first + signature.states
    places = list(range(first))
    places.extend(first + index for index in kept if index < signature.states)
    places.extend(range(after, len(node.inputs)))
    extra = signature.extra_outputs
    _keep(body.outputs, [*range(extra), *(extra + index for index in kept)])
    _keep(body.inputs, places)
    return _with(node, [node.inputs[place] for place in places if place < len(node.inputs)], kept)


class _Signature(NamedTuple):
    """How inputs and outputs of a loop lie; those of the body lie like the inputs of the node."""

    #: Inputs before the states.
    extra_inputs: int
    #: Outputs of the body that stand before those that are outputs of the node.
    extra_outputs: int
    #: Values carried from one turn to the next; they come first in the outputs.
    states: int


def _signature(node: ir.Node) -> _Signature:
    """Loop takes a count and a condition first, and its body puts out a condition first."""
    if node.op_type == "Loop":
        return _Signature(2, 1, max(0, len(node.inputs) - 2))
    return _Signature(0, 0, len(node.inputs) - node.attributes["num_scan_inputs"].as_int())


def _reached(
    kept: set[int],
    roots: Sequence[ir.Value],
    states: Sequence[ir.Value],
    results: Sequence[ir.Value],
) -> list[int]:
    """Add the states that the roots depend on, in this turn or in an earlier one."""
    state_of = {value: index for index, value in enumerate(states)}
    pending, seen = list(roots), set[ir.Value]()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        state = state_of.get(value)
        if state is not None and state not in kept:
            kept.add(state)
            pending.append(results[state])
        if (producer := value.producer()) is not None:
            pending.extend(_read_by(producer))
    return sorted(kept)


def _read_by(node: ir.Node) -> list[ir.Value]:
    """What a node reads, its bodies included."""
    read = [value for value in node.inputs if value is not None]
    for graph in bodies(node):
        read.extend(graph.outputs)
        for inner in graph:
            read.extend(_read_by(inner))
    return read


def _keep(values: MutableSequence[ir.Value], indices: Sequence[int]) -> None:
    values[:] = [values[index] for index in indices]  # onnx_ir does not notice a `del`


def _with(node: ir.Node, inputs: Sequence[ir.Value | None], kept: Sequence[int]) -> ir.Node:
    """Put a node with these inputs and only some of the outputs in the place of another."""
    graph = node.graph
    assert graph is not None
    new = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        node.attributes.values(),
        overload=node.overload,
        num_outputs=len(kept),
        version=node.version,
        name=node.name,
        doc_string=node.doc_string,
        metadata_props=node.metadata_props,
    )
    for index, output in zip(kept, new.outputs, strict=True):
        old = node.outputs[index]
        output.name, output.type, output.shape = old.name, old.type, old.shape
        output.metadata_props.update(old.metadata_props)
        old.replace_all_uses_with(output, replace_graph_outputs=True)
    graph.insert_before(node, new)
    for place in range(len(node.inputs)):
        node.replace_input_with(place, None)
    graph.remove(node)
    return new
