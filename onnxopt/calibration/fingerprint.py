"""What a value is computed from, as a hash: observations hold as long as that is the same."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.traversal import bodies

__all__ = ["DIGEST_MODULUS", "feed_digest", "fingerprints"]

#: Hashes of samples are added up modulo this number.
DIGEST_MODULUS = 2**64

_DIGEST_BYTES = 16


def fingerprints(model: ir.Model, names: Iterable[str]) -> dict[str, str]:
    """A hash of everything upstream of each value: operators, attributes, weights, input names.

    Names of inner values and of nodes do not count, so a value keeps its fingerprint when it is
    renamed. Names that the main graph does not have are left out.
    """
    values = {value.name: value for value in model.graph.inputs}
    values.update({each.name: each for node in model.graph for each in node.outputs})
    known: dict[ir.Value, bytes] = {}
    found = {}
    for name in names:
        if name in values:
            _hash_upstream(model, values[name], known)
            found[name] = known[values[name]].hex()
    return found


def feed_digest(feed: Mapping[str, Any]) -> int:
    """A hash of one sample, as a number of 64 bits; those of many are added up in any order."""
    check, sums = 0, 0  # several times as fast as a hash that withstands attacks
    for name in sorted(feed):
        array = np.ascontiguousarray(feed[name])
        content = repr(array.tolist()).encode() if array.dtype.hasobject else array.data
        for part in (f"{name} {array.dtype} {array.shape}".encode(), content):
            check, sums = zlib.crc32(part, check), sums + _word_sum(part)
    return check << 32 | (sums ^ sums >> 32) % 2**32


def _word_sum(content: bytes | memoryview) -> int:
    """Sum of the words of 64 bits, those that are whole."""
    if not content:
        return 0
    octets = np.frombuffer(content, np.uint8)
    return int(octets[: len(octets) // 8 * 8].view(np.uint64).sum(dtype=np.uint64))


def _hash_upstream(model: ir.Model, target: ir.Value, known: dict[ir.Value, bytes]) -> None:
    """Hash a value and what it depends on, producers first; without recursion, graphs are deep."""
    pending = [target]
    while pending:
        value = pending[-1]
        node = value.producer()
        needed = [] if node is None else [*filter(None, node.inputs), *_captured(node)]
        missing = [each for each in needed if each not in known]
        if missing:
            pending.extend(missing)
            continue
        pending.pop()
        if value not in known:
            known[value] = _hash_value(model, value, node, known)


def _hash_value(
    model: ir.Model, value: ir.Value, node: ir.Node | None, known: Mapping[ir.Value, bytes]
) -> bytes:
    total = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    if node is None:
        total.update(f"input {value.name}".encode() if value.is_graph_input() else b"constant")
        if value.const_value is not None:
            _update_with_tensor(total, value.const_value)
        return total.digest()
    version = node.version or model.graph.opset_imports.get(node.domain)
    total.update(f"{node.op_identifier()} {version} {node.outputs.index(value)}".encode())
    for name in sorted(node.attributes):
        total.update(name.encode())
        _update_with_attribute(total, node.attributes[name])
    for each in node.inputs:
        total.update(known[each] if each is not None else b"-")
    for each in _captured(node):
        total.update(known[each])
    function = model.functions.get(node.op_identifier())
    if function is not None:
        for inner in function.all_nodes():
            _update_with_node(total, inner)
    return total.digest()


def _captured(node: ir.Node) -> list[ir.Value]:
    """Values of outer graphs that the bodies of a node read."""
    found: dict[ir.Value, None] = {}
    for body in bodies(node):
        own = {*body.inputs, *body.initializers.values()}
        own.update(each for inner in body.all_nodes() for each in inner.outputs)
        for inner in body.all_nodes():
            own.update(each for deeper in bodies(inner) for each in deeper.inputs)
            own.update(each for deeper in bodies(inner) for each in deeper.initializers.values())
        for inner in body.all_nodes():
            found.update(dict.fromkeys(x for x in inner.inputs if x is not None and x not in own))
        found.update(dict.fromkeys(x for x in body.outputs if x is not None and x not in own))
    return list(found)


def _update_with_node(total: Any, node: ir.Node) -> None:
    """Add a node of a body or function, where names of values tell how it is wired."""
    names = [each.name if each is not None else "" for each in (*node.inputs, *node.outputs)]
    total.update(f"{node.op_identifier()} {len(node.inputs)} {names}".encode())
    for name in sorted(node.attributes):
        total.update(name.encode())
        _update_with_attribute(total, node.attributes[name])


def _update_with_attribute(total: Any, attribute: ir.Attr) -> None:
    if attribute.is_ref():
        total.update(f"ref {attribute.ref_attr_name}".encode())
    elif attribute.type == ir.AttributeType.TENSOR:
        _update_with_tensor(total, attribute.as_tensor())
    elif attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        single = attribute.type == ir.AttributeType.GRAPH
        for graph in [attribute.as_graph()] if single else attribute.as_graphs():
            for value in graph.initializers.values():
                total.update(str(value.name).encode())
                if value.const_value is not None:
                    _update_with_tensor(total, value.const_value)
            for node in graph:
                _update_with_node(total, node)
            total.update(str([each.name for each in (*graph.inputs, *graph.outputs)]).encode())
    else:
        total.update(repr(attribute.value).encode())


def _update_with_tensor(total: Any, tensor: ir.TensorProtocol) -> None:
    total.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    if tensor.dtype == ir.DataType.STRING:
        total.update(repr(tensor.numpy().tolist()).encode())
    else:
        total.update(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)
