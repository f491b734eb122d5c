"""Choose which constant values to write into the model so that the file does not grow.

Each value that a node outside the constant part reads must be there: either it is written as an
initializer, or its node stays and what that node reads must be there. Writing costs the value's
bytes, keeping a node costs the node's bytes, and keeping an initializer costs its bytes too, unless
others read it anyway. The cheapest choice is a minimum cut between what is read and what would have
to stay. Only values that are small and read from outside are written whatever it costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ..shared.minimum_cut import Network
from .constant_values import ConstantValues
from .region_proto import inputs_of, outputs_of

__all__ = ["choose_values"]

#: A capacity that no sum of real ones reaches.
_UNCUTTABLE = 1 << 100
#: Tags, lengths, element type and dimensions around the name and the numbers of an initializer.
_INITIALIZER_BYTES = 16
#: The same for a Constant node, which is written where a graph output is folded.
_CONSTANT_NODE_BYTES = 48


def choose_values(constants: ConstantValues, small_bytes: int) -> list[ir.Value]:
    """The values to write, in topological order.

    Args:
        constants: The constant part of a model.
        small_bytes: Values up to this size are written even where that makes the file larger.
    """
    return _Choice(constants, small_bytes).values()


class _Choice:
    def __init__(self, constants: ConstantValues, small_bytes: int) -> None:
        self._constants = constants
        self._small_bytes = small_bytes
        self._nodes = dict.fromkeys(constants.nodes)
        self._network = Network()
        self._computed: dict[ir.Node, int] = {}
        self._needed: dict[ir.Value, int] = {}

    def values(self) -> list[ir.Value]:
        needed = [value for value in outputs_of(self._nodes) if self._is_read_outside(value)]
        small = [value for value in needed if self._is_small(value)]
        self._needed = {value: self._network.add_node() for value in small}
        self._build([value for value in needed if value not in self._needed])
        kept = self._network.source_side()
        stays = {node for node, vertex in self._computed.items() if vertex in kept}
        read = {*needed, *inputs_of(stays)}
        return [
            value
            for value in outputs_of(node for node in self._nodes if node not in stays)
            if value in read
        ]

    def _is_read_outside(self, value: ir.Value) -> bool:
        return value.is_graph_output() or any(
            reader not in self._nodes for reader in value.consumers()
        )

    def _build(self, needed: Sequence[ir.Value]) -> None:
        """Make the network from the values that are read, upstream as far as writing costs."""
        stack: list[ir.Node] = []
        for value in needed:
            self._network.add_edge(self._network.source, self._vertex(value, stack), _UNCUTTABLE)
        while stack:
            node = stack.pop()
            vertex = self._computed[node]
            self._network.add_edge(vertex, self._network.sink, _node_bytes(node))
            for value in inputs_of([node]):
                self._network.add_edge(vertex, self._vertex(value, stack), _UNCUTTABLE)

    def _vertex(self, value: ir.Value, stack: list[ir.Node]) -> int:
        """The vertex that says that a value is needed."""
        if value in self._needed:
            return self._needed[value]
        vertex = self._needed[value] = self._network.add_node()
        node = value.producer()
        if node is None or node not in self._nodes:
            if not self._is_read_outside(value):
                self._network.add_edge(vertex, self._network.sink, self._cost(value))
            return vertex
        if node not in self._computed:
            self._computed[node] = self._network.add_node()
            stack.append(node)
        self._network.add_edge(vertex, self._computed[node], self._cost(value))
        return vertex

    def _is_small(self, value: ir.Value) -> bool:
        size = self._constants.nbytes(value)
        return size is not None and size <= self._small_bytes

    def _cost(self, value: ir.Value) -> int:
        """Bytes of a value that is written into the file."""
        size = self._constants.nbytes(value)
        if size is None:
            return _UNCUTTABLE
        around = _CONSTANT_NODE_BYTES if value.is_graph_output() else _INITIALIZER_BYTES
        return size + around + len(value.name or "")


def _node_bytes(node: ir.Node) -> int:
    return int(ir.serde.serialize_node(node).ByteSize())
