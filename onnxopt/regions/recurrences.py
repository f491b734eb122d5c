"""Recurrent layers with constant weights, and which of them a runtime has in 8 bits.

ONNX Runtime's CPU provider has one kernel, ``DynamicQuantizeLSTM``: int8 weights, a scale for each
row of a gate, and uint8 inputs, with the range of all inputs of a run, and states, with a range of
their own at each step (``rnn_helpers.cc``, ``ComputeGemm``). It knows all directions, peepholes,
initial states, lengths of sequences and activations that LSTM does. There is no such kernel for GRU
and RNN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute
from onnxopt.op_traits import is_standard
from onnxopt.regions.products import moved_constant
from onnxopt.rewriting import Refuse

__all__ = ["Recurrence", "recurrences"]

Array = np.ndarray[Any, Any]

_KERNELS = frozenset(["LSTM"])
_RECURRENT = frozenset(["LSTM", "GRU", "RNN"])


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """An LSTM with constant weights.

    Attributes:
        node: The node.
        inputs: What inputs are multiplied by, [directions, inputs, gates]. Constant, float32.
        states: What states are multiplied by, [directions, units, gates].
    """

    node: ir.Node
    inputs: Array
    states: Array

    @property
    def key(self) -> str:
        """What it is called in plans; the same in a copy of the model."""
        return next((value.name for value in self.node.outputs if value.name), "")

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All that it consists of."""
        return (self.node,)

    @property
    def weight_inputs(self) -> tuple[int, ...]:
        """Positions of the inputs that hold its weights."""
        return (1, 2)

    @property
    def weight_count(self) -> int:
        """How many weights it has."""
        return int(self.inputs.size + self.states.size)


def recurrences(graph: ir.Graph) -> Iterator[Recurrence | tuple[ir.Node, str]]:
    """All recurrent layers of a graph; for those that are left alone, the node and why."""
    for node in graph:
        if node.op_type in _RECURRENT and is_standard(node):
            try:
                yield _recurrence(node)
            except Refuse as refusal:
                yield node, str(refusal)


def _recurrence(node: ir.Node) -> Recurrence:
    if node.op_type not in _KERNELS:
        raise Refuse(f"the runtime has no 8-bit kernel for {node.op_type}")
    if int_attribute(node, "layout", 0):
        raise Refuse("its batch comes first, which the runtime's 8-bit kernel does not take")
    found: list[Array] = []
    for value in (*node.inputs, None, None)[1:3]:
        weights = None if value is None else moved_constant(value)
        if weights is None:
            raise Refuse("its weights are not constant")
        if weights.ndim != 3:
            raise Refuse("its weights are no matrices, one for each direction")
        if weights.dtype != np.float32:
            raise Refuse(f"its weights are {weights.dtype}, and only float32 is quantized")
        if not np.isfinite(weights).all():
            raise Refuse("its weights are not all finite")
        found.append(weights.transpose(0, 2, 1))
    return Recurrence(node, *found)
