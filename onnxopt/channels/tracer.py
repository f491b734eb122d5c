"""Follow the channels of one graph, from the layers that make them to those that read them.

Each channel gets a number. A value that holds channels has an array of these numbers, in the shape
of the value with 1 for each axis that holds none: a convolution's output has [1, channels, 1, 1].
What an operator does to the order of elements it does to these arrays, so that Concat, Split,
Reshape, Transpose and what they make together (a channel shuffle, say) need no rules of their own.
Where two channels meet in an elementwise operator they become one atom: they can only be removed
together. What is not understood pins the channels it reads, with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.symbolic import SymbolicFacts
from onnxopt.channels.atoms import Atoms, Ids, Pin
from onnxopt.channels.borders import Border
from onnxopt.channels.cells import Cell
from onnxopt.channels.followers import AxisRef, Follower
from onnxopt.channels.known import Transfer
from onnxopt.channels.layers import Layer
from onnxopt.channels.pairings import Pairing
from onnxopt.rewriting import Refuse

__all__ = [
    "Handler",
    "Step",
    "Trace",
    "Tracer",
    "aligned",
    "axes_with_channels",
    "references",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """What an operator does to what is known of channels.

    Attributes:
        inputs: The values whose channels it reads; None for one without.
        output: The value it makes.
        transfer: From what is known of the inputs to what is known of the output.
        in_place: Whether each place of the output is made of the same place of the inputs.
    """

    inputs: tuple[ir.Value | None, ...]
    output: ir.Value
    transfer: Transfer
    in_place: bool = False


@dataclasses.dataclass
class Trace:
    """The channels of a graph.

    Attributes:
        graph: The graph.
        atoms: The atom of each channel, by value, in the shape that the module describes.
        count: Number of atoms.
        pins: By atom, why it must stay; None when nothing says so.
        steps: In topological order.
        layers: In topological order.
        followers: What has to change when channels go.
        pairings: Products of two computed tensors.
        cells: Recurrent layers.
        whole: Axes along which each place must stay, though channels beside it may go.
        ties: Axes along which the same places must stay, though their atoms differ.
        borders: Padded depthwise convolutions, in topological order.
    """

    graph: ir.Graph
    atoms: dict[ir.Value, Ids]
    count: int
    pins: list[Pin | None]
    steps: list[Step]
    layers: list[Layer]
    followers: list[Follower]
    pairings: list[Pairing]
    cells: list[Cell]
    whole: list[AxisRef]
    ties: list[tuple[AxisRef, ...]]
    borders: list[Border]


class Tracer:
    """What the rule of an operator works on."""

    def __init__(self, graph: ir.Graph, opset: int, ir_version: int) -> None:
        self.graph = graph
        self.opset = opset
        self.ir_version = ir_version
        self.facts = SymbolicFacts()
        self.ids: dict[ir.Value, Ids] = {}
        self.steps: list[Step] = []
        self.layers: list[Layer] = []
        self.followers: list[Follower] = []
        self.pairings: list[Pairing] = []
        self.cells: list[Cell] = []
        self.whole: list[AxisRef] = []
        self.ties: list[tuple[AxisRef, ...]] = []
        self.borders: list[Border] = []
        self._atoms = Atoms()
        #: Inputs of the present node through which channels are followed.
        self._followed: set[ir.Value | None] = set()

    # Questions

    def of(self, value: ir.Value | None) -> Ids | None:
        """The channels of a value, or None when it has none that are followed."""
        return None if value is None else self.ids.get(value)

    def rank(self, value: ir.Value | None) -> int:
        """The number of axes.

        Raises:
            Refuse: When it is not known.
        """
        shape = self.facts.shape(value)
        if shape is None:
            raise Refuse("a rank is not known")
        return len(shape)

    def sizes(self, value: ir.Value | None) -> tuple[int | None, ...]:
        """The shape, None for a size that is only known when the model runs.

        Raises:
            Refuse: When the rank is not known.
        """
        shape = self.facts.shape(value)
        if shape is None:
            raise Refuse("a rank is not known")
        return tuple(each.constant for each in shape)

    def single_axis(self, value: ir.Value, axis: int) -> Ids | None:
        """The channels of a value if they lie along this axis only; None when there are none.

        Raises:
            Refuse: When it has channels along another axis.
        """
        ids = self.of(value)
        if ids is None:
            return None
        if ids.size != ids.shape[axis]:
            raise Refuse("its channels lie along another axis")
        return ids.reshape(-1)

    # Statements

    def fresh(self, count: int) -> Ids:
        """New channels."""
        return self._atoms.make(count)

    def unite(self, left: Ids, right: Ids) -> None:
        """Let channels at the same place be removed together or not at all."""
        self._atoms.unite(left, right)

    def pin(self, ids: Ids | None, reason: str, node: ir.Node | None = None) -> None:
        """Let channels stay."""
        if ids is not None:
            name = "" if node is None else node.name or node.op_type
            self._atoms.pin(ids, Pin(reason, name))

    def emit(
        self,
        output: ir.Value,
        ids: Ids,
        inputs: Sequence[ir.Value | None],
        transfer: Transfer,
        followers: Sequence[Follower] = (),
        *,
        in_place: bool = False,
    ) -> None:
        """Say which channels an output has, and how constants come through.

        An output of a single channel has none that could be removed, so it is not followed.

        Args:
            output: The output.
            ids: Its channels.
            inputs: The values whose channels it is made of.
            transfer: What becomes of constants.
            followers: What changes when channels go.
            in_place: Whether each place of the output is made of the same place of the inputs.
        """
        self._followed.update(inputs)
        if ids.size > 1:
            self.ids[output] = ids
            self.steps.append(Step(tuple(inputs), output, transfer, in_place))
        else:
            self.pin(ids, "the only channel of a tensor", output.producer())
        self.followers.extend(followers)

    def only_counted(self, value: ir.Value) -> None:
        """Say that the present node does not care for the channels of an input."""
        self._followed.add(value)

    # The walk

    def walk(self, handler_for: Callable[[ir.Node], Handler | None]) -> None:
        """Follow the channels through all nodes of the graph."""
        for node in self.graph:
            self._followed.clear()
            reason = "they are a parameter of another operator"
            said = [len(each) for each in self._statements()]
            try:
                handler = handler_for(node)
                if handler is None:
                    raise Refuse(f"read by {node.op_type}, through which they are not followed")
                handler(node, self)
            except Refuse as refuse:
                reason = str(refuse)
                self._take_back(node, said)
            for value in node.inputs:
                if value not in self._followed:
                    self.pin(self.of(value), reason, node)
        for value, ids in self.ids.items():
            if value.is_graph_output():
                self.pin(ids, "part of an output of the graph", value.producer())
            for reader in value.consumers():
                if reader.graph is not self.graph:
                    self.pin(ids, "read in a body of control flow", reader)

    def _statements(self) -> tuple[list[Any], ...]:
        said = self.steps, self.layers, self.followers, self.pairings, self.cells
        return (*said, self.whole, self.ties, self.borders)

    def _take_back(self, node: ir.Node, said: Sequence[int]) -> None:
        """Forget what a rule said of a node before it refused."""
        self._followed.clear()
        for statements, count in zip(self._statements(), said, strict=True):
            del statements[count:]
        for output in node.outputs:
            self.ids.pop(output, None)

    def result(self) -> Trace:
        """What was found."""
        numbers, pins = self._atoms.united()
        atoms = {value: numbers[ids] for value, ids in self.ids.items()}
        for layer in self.layers:
            layer.inputs = None if layer.inputs is None else numbers[layer.inputs]
            layer.outputs = None if layer.outputs is None else numbers[layer.outputs]
        for pairing in self.pairings:
            pairing.renumber(numbers)
        for cell in self.cells:
            cell.renumber(numbers)
        held = np.zeros(len(pins), np.bool_)
        for ids in atoms.values():
            held[ids] = True
        for atom in np.flatnonzero(~held).tolist():
            pins[atom] = pins[atom] or Pin("part of no tensor that is followed", "")
        return Trace(
            self.graph,
            atoms,
            len(pins),
            pins,
            self.steps,
            self.layers,
            self.followers,
            self.pairings,
            self.cells,
            self.whole,
            self.ties,
            self.borders,
        )


#: The rule of an operator. It may raise `Refuse`, which pins the channels of all inputs.
Handler = Callable[[ir.Node, Tracer], None]


def axes_with_channels(ids: Ids) -> list[int]:
    """The axes of a value that hold channels."""
    return [axis for axis, size in enumerate(ids.shape) if size > 1]


def references(value: ir.Value, ids: Ids) -> list[AxisRef]:
    """The axes of a value that hold channels, with the value."""
    return [AxisRef(value, axis) for axis in axes_with_channels(ids)]


def aligned(ids: Ids, rank: int) -> Ids:
    """Channels in the shape that broadcasting against a value of this rank gives them."""
    return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)
