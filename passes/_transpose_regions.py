"""Find the places for Transposes where the fewest are needed: a minimum cut.

Operators that do not care for the layout (`_transpose_operators`) form regions with the Transposes
around them. A *tensor* here is a value together with its transposed copies: the Transposes between
them are free to be anywhere, or nowhere. Each operator of a region works in one of two layouts;
an operator that does care, and whatever stands outside the graph, keeps its own. A tensor costs one
Transpose for each layout that a reader wants and its producer does not give. Which operators to
switch is then a minimum cut between the two layouts, the weight of an edge being the size of the
tensor, and is found exactly, however large the region is.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from onnxopt.analysis.values import dims, is_constant
from onnxopt.op_traits import Trait, has_trait, is_standard
from onnxopt.rewriting import Refuse

from ._minimum_cut import Network
from ._transpose_operators import Carrier, carrier_of, change_for
from ._transpose_permutations import (
    Frames,
    Permutation,
    compose,
    inverse,
    is_identity,
    permutation_of,
)

__all__ = ["Layout", "Region", "Tensor", "better_layouts", "find_regions"]

#: The axes of a tensor relative to those of its region: the permutation that leads there.
Layout = Permutation

#: What one node costs, in elements that could be moved in that time; only a guide for choices.
_NODE = 4096
#: What a size that is not known is taken for.
_UNKNOWN_SIZE = 16
#: Operators that runtimes fuse with the elementwise operators after them.
_FUSING = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "BatchNormalization", "Add"})


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


# The choice of layouts


@dataclasses.dataclass(frozen=True)
class _Bill:
    """Transposes that a choice of layouts needs, and the elements they move."""

    count: int
    weight: int


def _producer_layout(tensor: Tensor, region: Region, chosen: dict[ir.Node, Layout]) -> Layout:
    node = tensor.origin.producer()
    if node is not None and region.carries_output(node, tensor.origin):
        return chosen[node]
    return tensor.copies[tensor.origin]


def _bill(region: Region, chosen: dict[ir.Node, Layout]) -> _Bill:
    count, weight = 0, 0
    for tensor in region.tensors:
        wanted = {tensor.copies[value] for value in tensor.outputs}
        for node, index, value in tensor.readers:
            carried = region.carries_input(node, index)
            wanted.add(chosen[node] if carried else tensor.copies[value])
        extra = len(wanted - {_producer_layout(tensor, region, chosen)})
        count += extra
        weight += extra * tensor.weight
    return _Bill(count, weight)


def _present_bill(region: Region) -> _Bill:
    """What stands in the graph now, which may be more than its layouts need."""
    count = sum(len(tensor.copies) - 1 for tensor in region.tensors)
    weight = sum((len(tensor.copies) - 1) * tensor.weight for tensor in region.tensors)
    return _Bill(count, weight)


def better_layouts(region: Region, opset: int) -> dict[ir.Node, Layout] | None:
    """A choice of layouts with fewer Transposes that move no more elements, or None.

    Tries each pair of layouts of the region. A choice that moves fewer elements with as many
    Transposes counts as better too.
    """
    present = _present_bill(region)
    chosen = dict(region.movable)
    best = _bill(region, chosen)
    layouts = sorted({layout for tensor in region.tensors for layout in tensor.copies.values()})
    for number, first in enumerate(layouts):
        for second in layouts[:number]:
            movable = _switchable(region, first, second, opset)
            for by_size in (True, False):
                candidate = {**chosen, **_cut(region, chosen, movable, first, second, by_size)}
                bill = _bill(region, candidate)
                if bill.count <= best.count and bill.weight <= best.weight and bill != best:
                    chosen, best = candidate, bill
                    break
    fewer = best.count < present.count and best.weight <= present.weight
    lighter = best.count == present.count and best.weight < present.weight
    return chosen if fewer or lighter else None


def _switchable(region: Region, first: Layout, second: Layout, opset: int) -> set[ir.Node]:
    """Nodes that can work in both layouts."""
    found: set[ir.Node] = set()
    for node, own in region.movable.items():
        if own not in (first, second):
            continue
        other = second if own == first else first
        try:
            change_for(node, region.carriers[node], compose(own, inverse(other)), opset)
        except Refuse:  # it keeps its layout, which the cut takes into account
            continue
        found.add(node)
    return found


def _cut(
    region: Region,
    chosen: dict[ir.Node, Layout],
    movable: set[ir.Node],
    first: Layout,
    second: Layout,
    by_size: bool,
) -> dict[ir.Node, Layout]:
    """The best choice between two layouts for the movable nodes, the others keeping theirs.

    The side of the source is the first layout. Between equally good cuts, the one decides that
    leaves Transposes where they are and does not part operators that runtimes fuse.
    """
    network = _Cut(first, second, scale=8 * len(region.tensors) + 1)
    for tensor in region.tensors:
        producer = tensor.origin.producer()
        variable: ir.Node | None = None
        if producer in movable and region.carries_output(producer, tensor.origin):
            variable = producer
        own = None if variable is not None else _producer_layout(tensor, region, chosen)
        readers: dict[ir.Node, None] = {}
        fixed = {tensor.copies[value] for value in tensor.outputs}
        for node, index, value in tensor.readers:
            if not region.carries_input(node, index):
                fixed.add(tensor.copies[value])
            elif node in movable:
                readers[node] = None
            else:
                fixed.add(chosen[node])
        weight = tensor.weight if by_size else 1
        network.add(tensor, variable, own, readers, fixed, weight)
    return network.choice(movable)


class _Cut:
    """The network of one choice between two layouts."""

    def __init__(self, first: Layout, second: Layout, scale: int) -> None:
        self.first, self.second, self.scale = first, second, scale
        self.network = Network()
        self.numbers: dict[ir.Node, int] = {}
        self.infinite = 1 << 60

    def number(self, node: ir.Node) -> int:
        if node not in self.numbers:
            self.numbers[node] = self.network.add_node()
        return self.numbers[node]

    def add(
        self,
        tensor: Tensor,
        producer: ir.Node | None,
        layout: Layout | None,
        readers: Iterable[ir.Node],
        fixed: set[Layout],
        weight: int,
    ) -> None:
        """Add what a tensor costs: a Transpose into a layout that some reader wants.

        Args:
            tensor: The tensor.
            producer: The node that makes it, if that may switch.
            layout: Else the layout in which it is made.
            readers: Nodes that read it and may switch.
            fixed: Layouts in which others read it.
            weight: What a Transpose costs.
        """
        network = self.network
        penalty = 0 if len(tensor.copies) > 1 else 1
        penalty += 2 if _is_fused(tensor) else 0
        capacity = weight * self.scale + penalty
        numbers = [self.number(reader) for reader in readers if reader is not producer]
        for wanted in (self.first, self.second):
            if layout == wanted or (wanted not in fixed and not numbers):
                continue
            into_second = wanted == self.second
            # `start` is where the tensor is made: a Transpose is needed if it is on the other side.
            side = network.source if into_second else network.sink
            start = side if producer is None else self.number(producer)
            if wanted in fixed:
                if producer is not None:
                    end = network.sink if into_second else network.source
                    self._edge(start, end, capacity, into_second)
                continue
            end = numbers[0]
            if len(numbers) > 1:
                end = network.add_node()
                for number in numbers:
                    self._edge(end, number, self.infinite, into_second)
            self._edge(start, end, capacity, into_second)

    def _edge(self, start: int, end: int, capacity: int, forwards: bool) -> None:
        tail, head = (start, end) if forwards else (end, start)
        self.network.add_edge(tail, head, capacity)

    def choice(self, movable: set[ir.Node]) -> dict[ir.Node, Layout]:
        """The layout of each node that is part of the network."""
        first_side = self.network.source_side()
        return {
            node: self.first if number in first_side else self.second
            for node, number in self.numbers.items()
            if node in movable
        }


def _is_fused(tensor: Tensor) -> bool:
    """Whether runtimes fuse what makes the tensor with what reads it.

    That is an elementwise operator or QuantizeLinear after a large one, and DequantizeLinear
    before a large one.
    """
    producer = tensor.origin.producer()
    if producer is None or not is_standard(producer):
        return False
    readers = [node for node, _, value in tensor.readers if value is tensor.origin]
    if producer.op_type == "DequantizeLinear":
        return any(node.op_type in _FUSING for node in readers)
    return producer.op_type in _FUSING and any(
        has_trait(node, Trait.UNARY)
        or has_trait(node, Trait.BROADCAST)
        or node.op_type == "QuantizeLinear"
        for node in readers
    )
