"""How the weights of each node of a graph are stored, and why so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from onnxopt.analysis.quantization import is_quantized_node
from onnxopt.findings import Treatment
from onnxopt.layers import layer_name
from onnxopt.traversal import all_nodes, root_graphs

__all__ = ["narrowed", "treatments"]

_NO_WEIGHTS = "reads no stored weights of matrix products, convolutions or tables"
_NO_FLOATS = "computes no floating-point numbers"


def treatments(
    model: ir.Model,
    chosen: Mapping[str, str],
    reasons: Mapping[str, str],
    otherwise: str = _NO_WEIGHTS,
) -> list[Treatment]:
    """How each node of a model reads its weights, of bodies and functions too.

    Args:
        model: The model, before anything was done to it.
        chosen: The form of narrow weights, by name of the nodes that read them.
        reasons: Why nodes have the weights that they have, by name.
        otherwise: Why all other nodes have.
    """
    return [
        _treatment(node, *_told(node, chosen, reasons, otherwise))
        for graph in root_graphs(model)
        for node in all_nodes(graph)
    ]


def narrowed(
    model: ir.Model, chosen: Mapping[str, str], reasons: Mapping[str, str]
) -> Iterator[Treatment]:
    """The same of nodes with narrow weights only; others may have been told of before."""
    return (each for each in treatments(model, chosen, reasons) if each.node in chosen)


def _told(
    node: ir.Node, chosen: Mapping[str, str], reasons: Mapping[str, str], otherwise: str
) -> tuple[str, str]:
    name = layer_name(node)
    if name in chosen:
        return f"{chosen[name]} weights", reasons[name]
    if name in reasons:
        return "float", reasons[name]
    if is_quantized_node(node):
        return "", otherwise
    if any(value.dtype is None or value.dtype.is_floating_point() for value in node.outputs):
        return "float", otherwise
    return "", _NO_FLOATS


def _treatment(node: ir.Node, precision: str, reason: str) -> Treatment:
    outputs = tuple(value.name or "" for value in node.outputs)
    return Treatment(layer_name(node), node.op_type, precision, reason, outputs)
