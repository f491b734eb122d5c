"""Sizes that a graph states as numbers, where one of them is a number of channels."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.analysis.values import constant_array, dims, has_one_use
from onnxopt.channels.followers import AxisRef, SizeInput
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Refuse

__all__ = ["size_input", "stated_size"]


def size_input(
    node: ir.Node, index: int, position: int, channels: AxisRef, free: tuple[int, ...] = ()
) -> list[SizeInput]:
    """What holds the number of channels in an input of sizes: one follower, or none.

    Args:
        node: The node.
        index: Its input.
        position: The element.
        channels: The channels that are counted.
        free: Numbers with a meaning of their own, which stay right (0 and -1 of Reshape).

    Raises:
        Refuse: When the number is computed, or others read it too.
    """
    value = node.inputs[index]
    assert value is not None
    array = constant_array(value)
    if array is not None:
        if int(array.reshape(-1)[position]) in free:
            return []
        return [SizeInput(node, index, position, channels)]
    concat, place, start = _piece(value, position)
    found = size_input(concat, place, position - start, channels, free)
    if found and (not has_one_use(value) or concat.graph is not node.graph):
        raise Refuse("the number of channels is read elsewhere")
    return found


def stated_size(value: ir.Value, position: int) -> int:
    """The element of an input of sizes, with what it means by itself (0 and -1 of Reshape).

    Raises:
        Refuse: When it is computed.
    """
    array = constant_array(value)
    if array is not None:
        return int(array.reshape(-1)[position])
    concat, place, start = _piece(value, position)
    piece = concat.inputs[place]
    assert piece is not None
    return stated_size(piece, position - start)


def _piece(value: ir.Value, position: int) -> tuple[ir.Node, int, int]:
    """The Concat that makes a vector, its input with an element, and where that input starts.

    Raises:
        Refuse: When there is no such node, or lengths are not known.
    """
    concat = value.producer()
    if concat is None or concat.op_type != "Concat" or not is_standard(concat):
        raise Refuse("the number of channels is computed")
    start = 0
    for place, piece in enumerate(concat.inputs):
        shape = dims(piece)
        length = shape[0] if shape is not None and len(shape) == 1 else None
        if not isinstance(length, int):
            break
        if position < start + length:
            return concat, place, start
        start += length
    raise Refuse("the number of channels is computed")
