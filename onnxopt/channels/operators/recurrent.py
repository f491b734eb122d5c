"""Recurrent layers: LSTM, GRU, RNN."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute
from onnxopt.analysis.values import constant_array
from onnxopt.channels.cells import GATES, Cell
from onnxopt.channels.followers import AxisRef, Follower, HiddenSize, Operand
from onnxopt.channels.known import Known, Transfer
from onnxopt.channels.tracer import Handler, Tracer
from onnxopt.rewriting import Refuse

__all__ = ["HANDLERS"]


def _recurrent(node: ir.Node, tracer: Tracer) -> None:
    source = node.inputs[0]
    if source is None:
        raise Refuse("an input is missing")
    if int_attribute(node, "layout", 0):
        raise Refuse("a recurrent layer with the batch first")
    weights = [constant_array(value) for value in node.inputs[1:3]]
    if any(array is None or array.ndim != 3 for array in weights):
        raise Refuse("the weights are not constant")
    for index in (3, 5, 6, 7):
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is not None and constant_array(value) is None:
            raise Refuse("a state or bias of a recurrent layer is not constant")
    recurrent = weights[1]
    assert recurrent is not None
    directions, _, units = recurrent.shape
    inputs = tracer.single_axis(source, 2)
    made = tracer.fresh(directions * units).reshape(directions, units)
    outputs = [each for each in node.outputs if each.name and _is_read(each)]
    if not outputs or made.size == 1:
        raise Refuse("a recurrent layer of one unit")
    shapes = {
        output: (1, directions, 1, units) if output is node.outputs[0] else (directions, 1, units)
        for output in outputs
    }
    along = AxisRef(outputs[0], len(shapes[outputs[0]]) - 1) if units > 1 else None
    cell = Cell(node, source, inputs, made, along)
    followers: list[Follower] = [] if along is None else _of_units(node, along)
    if inputs is not None:
        followers.append(Operand(node, 1, 2, AxisRef(source, 2)))
    for output, shape in shapes.items():
        if directions > 1:
            tracer.whole.append(AxisRef(output, len(shape) - 3))
        read = [source if inputs is not None else None]
        tracer.emit(output, made.reshape(shape), read, _transfer(cell, shape))
    tracer.followers.extend(followers)
    tracer.cells.append(cell)


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _of_units(node: ir.Node, units: AxisRef) -> list[Follower]:
    """All that has a number for each unit, gate by gate."""
    gates, _ = GATES[node.op_type]
    found: list[Follower] = [
        Operand(node, 1, 1, units, gates),
        Operand(node, 2, 1, units, gates),
        Operand(node, 2, 2, units),
        HiddenSize(node, units),
    ]
    for index, axis, repeats in ((3, 1, 2 * gates), (5, 2, 1), (6, 2, 1), (7, 1, 3)):
        if len(node.inputs) > index and node.inputs[index] is not None:
            found.append(Operand(node, index, axis, units, repeats))
    return found


def _transfer(cell: Cell, shape: tuple[int, ...]) -> Transfer:
    plain = all(name not in cell.node.attributes for name in ("activations", "activation_alpha"))
    weights = constant_array(cell.node.inputs[1])
    assert weights is not None

    def transfer(known: Sequence[Known | None]) -> Known | None:
        if not plain:
            return None
        zero = cell.zero_units(known[0]).reshape(shape)
        return Known(zero, np.zeros(shape, weights.dtype))

    return transfer


HANDLERS: dict[str, Handler] = dict.fromkeys(GATES, _recurrent)
