"""Calls of local functions: where they are, and whether a body may take a call's place."""

from __future__ import annotations

import collections
import dataclasses
import graphlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import onnx
import onnx_ir as ir

from onnxopt.traversal import all_nodes

__all__ = ["Call", "bytes_added", "callees_first", "calls_by_function", "obstacle", "unused"]

Identifier: TypeAlias = tuple[str, str, str]

#: Domains whose operators the runtime may have kernels for. It prefers those to a local function.
_RUNTIME_DOMAINS = ("ai.onnx", "com.microsoft")
#: What is added to a name that is taken, each time it is mentioned.
_NUMBER_BYTES = 3
_GRAPH_TYPES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


@dataclasses.dataclass(frozen=True)
class Call:
    """A node that calls a local function.

    Attributes:
        node: The node.
        root: The main graph or the graph of the function that the node stands in, however deep.
        imports: Opset version by domain there.
    """

    node: ir.Node
    root: ir.Graph
    imports: Mapping[str, int]


def calls_by_function(model: ir.Model) -> dict[Identifier, list[Call]]:
    """All calls, by the identifier of the function that is called."""
    found: dict[Identifier, list[Call]] = collections.defaultdict(list)
    for root, imports in _roots(model):
        for node in all_nodes(root):
            if node.op_identifier() in model.functions:
                found[node.op_identifier()].append(Call(node, root, imports))
    return found


def callees_first(model: ir.Model) -> list[ir.Function]:
    """Functions in such an order that each comes after those it calls.

    Functions that call themselves, directly or not, and those that call such, are left out.
    """
    callees = {name: _callees(function, model) for name, function in model.functions.items()}
    endless = _endless(callees)
    sorter = graphlib.TopologicalSorter(
        {name: called for name, called in callees.items() if name not in endless}
    )
    return [model.functions[name] for name in sorter.static_order()]


def unused(model: ir.Model) -> list[Identifier]:
    """Functions that the main graph does not reach."""
    reached: set[Identifier] = set()
    stack = [node.op_identifier() for node in all_nodes(model.graph)]
    while stack:
        name = stack.pop()
        if name in model.functions and name not in reached:
            reached.add(name)
            stack.extend(_callees(model.functions[name], model))
    return [name for name in model.functions if name not in reached]


def obstacle(function: ir.Function, call: Call, model: ir.Model) -> str | None:
    """Why a call must stay, as a phrase without names, or None when it can be inlined."""
    domain = function.domain
    if domain == "" or any(
        domain == known or domain.startswith(f"{known}.") for known in _RUNTIME_DOMAINS
    ):
        return "the runtime may have a kernel for an operator of this domain"
    if len(call.node.inputs) > len(function.inputs):
        return "the call has more inputs than the function"
    if len(call.node.outputs) > len(function.outputs):
        return "the call has more outputs than the function"
    if any(attribute.type in _GRAPH_TYPES for attribute in call.node.attributes.values()):
        return "the call passes a graph as an attribute"
    given = [value is not None for value in call.node.inputs]
    missing = {
        value
        for index, value in enumerate(function.inputs)
        if index >= len(given) or not given[index]
    }
    if any(output in missing for output in function.outputs[: len(call.node.outputs)]):
        return "an output is an input that the call leaves out"
    return _opset_obstacle(function, call.imports, model)


def _opset_obstacle(
    function: ir.Function, imports: Mapping[str, int], model: ir.Model
) -> str | None:
    """Why the operators of a function may mean something else where it is called, or None."""
    for node in all_nodes(function.graph):
        there, here = _version(imports, node.domain), _version(function.opset_imports, node.domain)
        if there is None:
            return "the caller does not import a domain that the function uses"
        if node.op_identifier() in model.functions or here == there:
            continue
        if here is None or not _same_schema(node, here, there):
            return "an operator of the function is another one in the caller's opset"
    return None


def _version(imports: Mapping[str, int], domain: str) -> int | None:
    return imports.get(domain, imports.get("ai.onnx") if domain == "" else None)


def _same_schema(node: ir.Node, first: int, second: int) -> bool:
    """Whether an operator did not change between two opset versions, as far as ONNX knows it."""
    try:
        one = onnx.defs.get_schema(node.op_type, first, node.domain)
        other = onnx.defs.get_schema(node.op_type, second, node.domain)
    except onnx.defs.SchemaError:
        return False
    return bool(one.since_version == other.since_version) and not one.deprecated


def bytes_added(function: ir.Function, calls: Sequence[Call], goes: bool) -> int:
    """About how many bytes the file grows by when calls are inlined.

    Args:
        function: The function.
        calls: The calls.
        goes: Whether the function is dropped afterwards.
    """
    body = sum(ir.serde.serialize_node(node).ByteSize() for node in function)
    body += _NUMBER_BYTES * sum(
        len(node.inputs) + len(node.outputs) + 1 for node in all_nodes(function.graph)
    )
    added = sum(body - ir.serde.serialize_node(call.node).ByteSize() for call in calls)
    return int(added - (ir.serde.serialize_function(function).ByteSize() if goes else 0))


def _roots(model: ir.Model) -> Iterator[tuple[ir.Graph, Mapping[str, int]]]:
    yield model.graph, model.opset_imports
    for function in model.functions.values():
        yield function.graph, function.opset_imports


def _callees(function: ir.Function, model: ir.Model) -> list[Identifier]:
    called = (node.op_identifier() for node in all_nodes(function.graph))
    return list(dict.fromkeys(name for name in called if name in model.functions))


def _endless(callees: Mapping[Identifier, Sequence[Identifier]]) -> set[Identifier]:
    """Functions whose expansion would not end: what remains when the others are taken away."""
    remaining = dict(callees)
    while True:
        finished = [name for name in remaining if not any(c in remaining for c in remaining[name])]
        if not finished:
            return set(remaining)
        for name in finished:
            del remaining[name]
