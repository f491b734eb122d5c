"""Choose the layouts of a region with the fewest Transposes: a minimum cut.

Each operator of a region works in one of two layouts; an operator that does care, and whatever
stands outside the graph, keeps its own. A tensor costs one Transpose for each layout that a reader
wants and its producer does not give. Which operators to switch is then a minimum cut between the
two layouts, the weight of an edge being the size of the tensor, and is found exactly, however large
the region is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import onnx_ir as ir

from onnxopt.op_traits import Trait, has_trait, is_standard
from onnxopt.rewriting import Refuse

from ..shared.minimum_cut import Network
from .operators import change_for
from .permutations import compose, inverse
from .regions import Layout, Region, Tensor

__all__ = ["better_layouts"]

#: Operators that runtimes fuse with the elementwise operators after them.
_FUSING = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "BatchNormalization", "Add"})


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
            change_for(node, compose(own, inverse(other)), opset)
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
    network = _Cut(first, second, scale=8 * len(region.tensors) + len(movable) + 1)
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
    for node in movable:
        if node.op_type == "Shape":  # it needs a Gather, if a small one, when it switches
            network.keep(node, region.movable[node])
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

    def keep(self, node: ir.Node, layout: Layout) -> None:
        """Let a node rather stay in a layout, if no Transpose depends on it."""
        if node in self.numbers:
            terminal = self.network.source if layout == self.first else self.network.sink
            self._edge(terminal, self.numbers[node], 1, layout == self.first)

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
