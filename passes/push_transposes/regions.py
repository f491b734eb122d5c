"""Find the regions of a graph in which the place of Transposes is free.

Operators that do not care for the layout (`_transpose_operators`) form regions with the Transposes
around them. A *tensor* here is a value together with its transposed copies: the Transposes between
them are free to be anywhere, or nowhere.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.analysis.values import dims, is_constant
from onnxopt.rewriting import Refuse

from .operators import Carrier, carrier_of
from .permutations import Frames, Permutation, is_identity, permutation_of

__all__ = ["Layout", "Region", "Tensor", "find_regions"]

#: The axes of a tensor relative to those of its region: the permutation that leads there.
Layout = Permutation

#: What one node costs, in elements that could be moved in that time; only a guide for choices.
_NODE = 4096
#: What a size that is not known is taken for.
_UNKNOWN_SIZE = 16


@dataclasses.dataclass
class Tensor:
    """A value and its transposed copies within one graph.

    Attributes:
        origin: The value that no Transpose of the region makes.
        copies: All of them, with their layouts; the origin too.
        readers: Node, input index and the copy it reads, without the Transposes in between.
        outputs: Copies that are outputs of the graph or read by the bodies of other nodes, and so
            must go on to exist.
    """

    origin: ir.Value
    copies: dict[ir.Value, Layout]
    readers: list[tuple[ir.Node, int, ir.Value]] = dataclasses.field(default_factory=list)
    outputs: list[ir.Value] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def weight(self) -> int:
        """What a Transpose of it costs, in elements."""
        sizes = dims(self.origin) or ()
        return _NODE + math.prod(size if isinstance(size, int) else _UNKNOWN_SIZE for size in sizes)


@dataclasses.dataclass
class Region:
    """Tensors whose axes are the same but for permutations, and the nodes that can switch.

    Attributes:
        tensors: In the order of the graph.
        movable: The layout in which each node works now.
        carriers: Where each of them carries a layout.
    """

    tensors: list[Tensor]
    movable: dict[ir.Node, Layout]
    carriers: dict[ir.Node, Carrier]

    def carries_output(self, node: ir.Node, output: ir.Value) -> bool:
        """Whether a node can make a value in another layout."""
        return node in self.movable and any(
            node.outputs[index] is output for index in self.carriers[node].outputs
        )

    def carries_input(self, node: ir.Node, index: int) -> bool:
        """Whether a node can read an input in another layout."""
        return node in self.movable and index in self.carriers[node].inputs


def find_regions(graph: ir.Graph, opset: int) -> Iterator[Region]:
    """Regions of one graph that have Transposes at all, without looking into bodies."""
    if all(node.op_type != "Transpose" for node in graph):
        return
    frames: Frames[ir.Value] = Frames()
    carriers: dict[ir.Node, Carrier] = {}
    copied: dict[ir.Value, ir.Value] = {}  # output of a Transpose to its input
    for node in graph:
        perm = _region_permutation(node)
        if perm is not None:
            source, output = node.inputs[0], node.outputs[0]
            assert source is not None
            if _may_move(node, graph, source in copied) and frames.join(source, output, perm):
                copied[output] = source
            continue
        carrier = carrier_of(node, opset)
        if carrier is not None and _join_all(frames, _carried(node, carrier), carrier.rank):
            carriers[node] = carrier
    tensors = _tensors(graph, frames, copied)
    regions: dict[ir.Value, list[Tensor]] = collections.defaultdict(list)
    for tensor in tensors:
        root, _ = frames.find(tensor.origin, 0)
        regions[root].append(tensor)
    nodes: dict[ir.Value, dict[ir.Node, Layout]] = collections.defaultdict(dict)
    for node, carrier in carriers.items():
        root, layout = frames.find(_carried(node, carrier)[0], carrier.rank)
        nodes[root][node] = layout
    for root, members in regions.items():
        if any(len(set(tensor.copies.values())) > 1 for tensor in members):
            own = nodes[root]
            yield Region(members, own, {node: carriers[node] for node in own})


def _may_move(transpose: ir.Node, graph: ir.Graph, of_copy: bool) -> bool:
    """Whether a Transpose is one whose place is free.

    If its output must go on to exist, it is, unless it stands in a chain or has a twin: then two
    values would have to be made where one is enough.
    """
    output, source = transpose.outputs[0], transpose.inputs[0]
    assert source is not None
    pinned = output.is_graph_output() or any(node.graph is not graph for node, _ in output.uses())
    twins = [node for node, _ in source.uses() if node.op_type == "Transpose"]
    return not pinned or (not of_copy and len(twins) == 1)


def _region_permutation(node: ir.Node) -> Permutation | None:
    try:
        perm = permutation_of(node)
    except Refuse:  # a function's parameter: it stays where it is
        return None
    if perm is None or is_identity(perm) or is_constant(node.inputs[0]):
        return None
    return perm


def _carried(node: ir.Node, carrier: Carrier) -> list[ir.Value]:
    inputs = [node.inputs[index] for index in carrier.inputs]
    return [
        *(value for value in inputs if value is not None),
        *(node.outputs[index] for index in carrier.outputs),
    ]


def _join_all(frames: Frames[ir.Value], values: list[ir.Value], rank: int) -> bool:
    """Give all values one frame; False when some have different ones already."""
    same = tuple(range(rank))
    first, *others = values
    frames.find(first, rank)
    agree = True
    for other in others:
        agree = frames.join(other, first, same) and agree
    return agree


def _tensors(
    graph: ir.Graph, frames: Frames[ir.Value], copied: dict[ir.Value, ir.Value]
) -> list[Tensor]:
    found: dict[ir.Value, Tensor] = {}
    origins: dict[ir.Value, ir.Value] = {}
    values: dict[ir.Value, None] = {}
    for node in graph:
        values.update((value, None) for value in node.inputs if value is not None)
        values.update(dict.fromkeys(node.outputs))
    for value in values:
        if value not in frames:
            continue
        source = copied.get(value)
        # A copy stands after what it copies, whose origin is known by then.
        origin = value if source is None else origins.get(source, source)
        origins[value] = origin
        _, layout = frames.find(value, 0)
        tensor = found.setdefault(origin, Tensor(origin, {}))
        tensor.copies[value] = layout
    for tensor in found.values():
        for value in tensor.copies:
            _collect_readers(graph, tensor, value, copied)
    return list(found.values())


def _collect_readers(
    graph: ir.Graph, tensor: Tensor, value: ir.Value, copied: dict[ir.Value, ir.Value]
) -> None:
    outside = value.is_graph_output() and value.graph is graph
    for node, index in value.uses():
        if node.graph is not graph:
            # A body of a node of this graph, or (for a captured value) a graph around it.
            outside = outside or value.graph is graph
        elif node.outputs[0] not in copied:
            tensor.readers.append((node, index, value))
    if outside:
        tensor.outputs.append(value)
