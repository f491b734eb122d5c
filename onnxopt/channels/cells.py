"""Recurrent layers: hidden units that read one another, and the channels that come in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.analysis.values import constant_array
from onnxopt.channels.atoms import Ids
from onnxopt.channels.followers import AxisRef
from onnxopt.channels.known import Known, Mask

__all__ = ["GATES", "Cell"]

#: Gates of each operator, and which one makes the candidate for the new state.
GATES = {"LSTM": (4, 3), "GRU": (3, 2), "RNN": (1, 0)}


@dataclasses.dataclass(eq=False)
class Cell:
    """LSTM, GRU or RNN with constant weights.

    Attributes:
        node: The node.
        source: What it reads.
        inputs: Channels of that, [I]; None when they are not followed.
        units: Hidden units by direction, [D, H].
        output: The axis of an output along which the units lie; None for one unit.
    """

    node: ir.Node
    source: ir.Value
    inputs: Ids | None
    units: Ids
    output: AxisRef | None

    def renumber(self, numbers: Ids) -> None:
        """Give channels the numbers of their atoms."""
        self.inputs = None if self.inputs is None else numbers[self.inputs]
        self.units = numbers[self.units]

    def needed(self, needed: Mask, known: Mapping[ir.Value, Known]) -> Ids:
        """What the units that are needed read, directly or through other units.

        Args:
            needed: By atom, whether something else needs it.
            known: What is known of the channels of each value.
        """
        live = needed[self.units]
        weights, recurrent = self._gates(1), self._gates(2)
        while True:
            reached = np.stack(
                [
                    (each[:, kept] != 0).any(axis=(0, 1))
                    for each, kept in zip(recurrent, live, strict=True)
                ]
            )
            if not (reached & ~live).any():
                break
            live = live | reached
        found = [self.units[live]]
        if self.inputs is not None:
            read = np.zeros(len(self.inputs), np.bool_)
            for each, kept in zip(weights, live, strict=True):
                read |= (each[:, kept] != 0).any(axis=(0, 1))
            if (given := known.get(self.source)) is not None:
                read &= ~given.mask.reshape(-1)  # a bias takes what constants add
            found.append(self.inputs[read])
        return np.concatenate(found)

    def contribution(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """What inputs that are constant at all times add to the gates, [D, gates * H]."""
        weights = self._gates(1).astype(np.float64)
        return (weights @ numbers).reshape(len(weights), -1)

    @property
    def bias(self) -> NDArray[Any]:
        """Biases for the input and for the state, [D, 2 * gates * H]; zeros where none are given.

        Those for the input stand beside ``W x`` in each gate, so that they can take a part of it.
        """
        weights = constant_array(self.node.inputs[1])
        assert weights is not None
        value = self.node.inputs[3] if len(self.node.inputs) > 3 else None
        given = None if value is None else constant_array(value)
        return (
            np.zeros((len(weights), 2 * weights.shape[1]), weights.dtype)
            if given is None
            else given
        )

    def zero_units(self, given: Known | None) -> Mask:
        """Units whose state is 0 at all times, [D, H].

        The state starts at 0, and the candidate for each new one is tanh(0) = 0: its weights and
        biases are 0, but for those on inputs and units that are 0 themselves.

        Args:
            given: What is known of the channels that come in.
        """
        _, candidate = GATES[self.node.op_type]
        weights, recurrent = self._gates(1)[:, candidate], self._gates(2)[:, candidate]
        silent = np.zeros(weights.shape[2], np.bool_)
        if given is not None:
            silent = (given.mask & ~given.nonzero).reshape(-1)
        read_inputs: Mask = (weights[:, :, ~silent] != 0).any(axis=2)
        zero: Mask = ~read_inputs & self._unbiased(candidate) & self._start_at_zero()
        while True:
            # All that could be are taken to be; those that read others are not.
            read: Mask = np.stack([_reads(*each) for each in zip(recurrent, ~zero, strict=True)])
            if not (zero & read).any():
                return zero
            zero = zero & ~read

    def _gates(self, index: int) -> NDArray[Any]:
        """Weights as [directions, gates, units, inputs]."""
        array = constant_array(self.node.inputs[index])
        assert array is not None
        directions, units = self.units.shape
        return array.reshape(directions, -1, units, array.shape[-1])

    def _unbiased(self, candidate: int) -> Mask:
        directions, units = self.units.shape
        value = self.node.inputs[3] if len(self.node.inputs) > 3 else None
        if value is None:
            return np.ones((directions, units), np.bool_)
        array = constant_array(value)
        assert array is not None
        parted = array.reshape(directions, 2, -1, units)[:, :, candidate]
        result: Mask = ~(parted != 0).any(axis=1)
        return result

    def _start_at_zero(self) -> Mask:
        start = np.ones(self.units.shape, np.bool_)
        for index in (5, 6):
            value = self.node.inputs[index] if len(self.node.inputs) > index else None
            if value is not None:
                array = constant_array(value)
                assert array is not None
                start &= ~(array != 0).any(axis=1)
        return start


def _reads(weights: NDArray[Any], columns: Mask) -> Mask:
    """Which rows have a weight at some of the columns."""
    found: Mask = (weights[:, columns] != 0).any(axis=1)
    return found
