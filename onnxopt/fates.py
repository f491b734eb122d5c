"""What became of every node of the original model, as far as passes tell how nodes are computed.

A pass speaks of the graph it was given, which others have changed before it. A node of the original
is found again there by the values it gives, or else by its name; one that is not is gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from onnxopt.findings import Treatment
from onnxopt.layers import layer_name
from onnxopt.traversal import all_nodes, root_graphs

__all__ = ["Birth", "births", "fates"]

_GONE = "computed no more: folded, fused into others or needless"
_CONSTANT = "a constant"


@dataclasses.dataclass(frozen=True)
class Birth:
    """A node of the original, as far as it is needed to find it again.

    Attributes:
        name: What it is called.
        operator: Its operator.
        outputs: Names of the values it gives.
    """

    name: str
    operator: str
    outputs: tuple[str, ...]


def births(model: ir.Model) -> list[Birth]:
    """All nodes of a model, those of bodies and functions included."""
    return [
        Birth(layer_name(node), node.op_type, tuple(value.name or "" for value in node.outputs))
        for graph in root_graphs(model)
        for node in all_nodes(graph)
    ]


def fates(nodes: Sequence[Birth], treatments: Sequence[Treatment]) -> list[Treatment]:
    """How each node of the original is computed in the result; none where no pass told.

    Args:
        nodes: Those of the original.
        treatments: What passes told of the nodes they were given; a later one goes first.
    """
    if not treatments:
        return []
    by_output = {name: each for each in treatments for name in each.outputs if name}
    by_name = {each.node: each for each in treatments}
    return [_fate(node, by_output, by_name) for node in nodes]


def _fate(node: Birth, by_output: dict[str, Treatment], by_name: dict[str, Treatment]) -> Treatment:
    if node.operator == "Constant":
        return Treatment(node.name, node.operator, "", _CONSTANT)
    found = next((by_output[name] for name in node.outputs if name in by_output), None)
    if found is None and node.name in by_name and by_name[node.name].operator == node.operator:
        found = by_name[node.name]
    if found is None:
        return Treatment(node.name, node.operator, "", _GONE)
    return Treatment(node.name, node.operator, found.precision, found.reason)
