"""Operators that work along axes: how they carry a layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import (
    axes,
    constant_input,
    int_attribute,
    ints_attribute,
)
from onnxopt.analysis.values import constant, dims, rank
from onnxopt.rewriting import Refuse

from .carriers import (
    NOTHING,
    Carrier,
    Change,
    Handler,
    first_alone,
    first_to_first,
    given_like,
    known_axes,
    known_rank,
    output_alone,
    permuted_constant,
    require_order,
)
from .permutations import Permutation, inverse, permuted

__all__ = ["AXIS_HANDLERS"]


# Along an axis


def _axis_of(node: ir.Node, default: int | None) -> int:
    axis = int_attribute(node, "axis", -100 if default is None else default)
    if axis == -100:
        raise Refuse("the axis is missing")
    return axis % known_rank(node.inputs[0])


def _axis_change(default: int | None) -> Callable[[ir.Node, Permutation, int], Change]:
    def change(node: ir.Node, perm: Permutation, opset: int) -> Change:
        return Change({"axis": inverse(perm)[_axis_of(node, default)]})

    return change


def _concat_carrier(node: ir.Node, opset: int) -> Carrier | None:
    if any(value is None for value in node.inputs):
        return None
    if _is_key_cache(node):
        return None
    seats = tuple(index for index, value in enumerate(node.inputs) if constant(value) is None)
    return Carrier(seats, (0,), known_rank(node.outputs[0])) if seats else None


def _is_key_cache(node: ir.Node) -> bool:
    """Whether ONNX Runtime may fuse an attention whose keys are put together here.

    It looks for a Concat of transposed past keys along the last of four axes, which a MatMul reads
    (``MatchPastSubgraph`` in its attention_fusion_helper.h).
    """
    if known_rank(node.outputs[0]) != 4 or int_attribute(node, "axis", 0) not in (3, -1):
        return False
    readers = node.outputs[0].uses()
    return any(reader.op_type == "MatMul" and index == 1 for reader, index in readers)


def _concat_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    axis = int_attribute(node, "axis", 0) % len(perm)
    constants = {
        index: permuted_constant(value, perm, keep_rank=True)
        for index, value in enumerate(node.inputs)
        if constant(value) is not None
    }
    return Change({"axis": inverse(perm)[axis]}, constants)


def _split_carrier(node: ir.Node, opset: int) -> Carrier:
    return Carrier((0,), tuple(range(len(node.outputs))), known_rank(node.inputs[0]))


def _gather_carrier(node: ir.Node, opset: int) -> Carrier | None:
    width = known_rank(node.inputs[0])
    match known_rank(node.inputs[1]):
        case 0:
            return Carrier((0,), (), width)
        case 1:
            return Carrier((0,), (0,), width)
    return None


def _gather_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    axis = _axis_of(node, 0)
    if rank(node.inputs[1]) == 0:
        require_order([kept for kept in perm if kept != axis])
    return Change({"axis": inverse(perm)[axis]})


def _softmax_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    """Only from the last axis to the last axis: before opset 13 nothing else means the same, and
    runtimes transpose inside for any other.
    """
    last = len(perm) - 1
    if _axis_of(node, 1 if opset < 13 else -1) != last or perm[last] != last:
        raise Refuse("it would not work along the last axis")
    return Change({"axis": last})


# Along several axes


def _reduce_axes(node: ir.Node, opset: int) -> tuple[int, ...] | None:
    """Axes of a reduction; None for all."""
    given = axes(node)
    if given == ():
        raise Refuse("which axes are reduced is not known")
    if given is None and int_attribute(node, "noop_with_empty_axes", 0):
        raise Refuse("it reduces nothing")
    return None if given is None else known_axes(given, known_rank(node.inputs[0]))


def _reduce_carrier(node: ir.Node, opset: int) -> Carrier:
    _reduce_axes(node, opset)
    keeps = int_attribute(node, "keepdims", 1) != 0
    return (first_to_first if keeps else first_alone)(node, opset)


def _reduce_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    reduced = _reduce_axes(node, opset)
    if reduced is None:
        return NOTHING
    if int_attribute(node, "keepdims", 1) == 0:
        require_order([axis for axis in perm if axis not in reduced])
    places = inverse(perm)
    return given_like(node, 1, sorted(places[axis] for axis in reduced))


def _arg_carrier(node: ir.Node, opset: int) -> Carrier:
    keeps = int_attribute(node, "keepdims", 1) != 0
    return (first_to_first if keeps else first_alone)(node, opset)


def _arg_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    axis = _axis_of(node, 0)
    if int_attribute(node, "keepdims", 1) == 0:
        require_order([kept for kept in perm if kept != axis])
    return Change({"axis": inverse(perm)[axis]})


def _squeeze_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    squeezed = known_axes(axes(node), len(perm))
    require_order([axis for axis in perm if axis not in squeezed])
    places = inverse(perm)
    return given_like(node, 1, sorted(places[axis] for axis in squeezed))


def _unsqueeze_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    added = known_axes(axes(node), len(perm))
    require_order([axis for axis in perm if axis not in added])
    places = inverse(perm)
    return given_like(node, 1, sorted(places[axis] for axis in added))


def _slice_axes(node: ir.Node, opset: int) -> tuple[int, ...]:
    width = known_rank(node.inputs[0])
    if opset < 10:
        starts = ints_attribute(node, "starts") or ()
        given = ints_attribute(node, "axes")
        return known_axes(range(len(starts)) if given is None else given, width)
    given = constant_input(node, 3, "axes")
    if given is None:
        sizes = dims(node.inputs[1])
        if sizes is None or not isinstance(sizes[0], int):
            raise Refuse("which axes are sliced is not known")
        given = tuple(range(sizes[0]))
    return known_axes(given, width)


def _slice_carrier(node: ir.Node, opset: int) -> Carrier:
    _slice_axes(node, opset)
    return first_to_first(node, opset)


def _slice_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    places = inverse(perm)
    moved = [places[axis] for axis in _slice_axes(node, opset)]
    if opset < 10:
        return Change({"axes": tuple(moved)})
    starts = node.inputs[1]
    if starts is None or starts.dtype is None:
        raise Refuse("the integer type of the axes is not known")
    return Change(constants={3: np.array(moved, starts.dtype.numpy())})


def _pad_carrier(node: ir.Node, opset: int) -> Carrier | None:
    carrier = first_to_first(node, opset)
    if opset < 11:
        return carrier if ints_attribute(node, "pads") is not None else None
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        constant_input(node, 3, "axes")
    elif constant_input(node, 1, "pads") is None:
        return None
    return carrier


def _pad_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    width, places = len(perm), inverse(perm)
    if opset >= 11 and (given := constant_input(node, 3, "axes")) is not None:
        moved = [places[axis % width] for axis in given]
        tensor = constant(node.inputs[3])
        assert tensor is not None
        return Change(constants={3: np.array(moved, tensor.dtype.numpy())})
    pads = ints_attribute(node, "pads") if opset < 11 else constant_input(node, 1, "pads")
    if pads is None or len(pads) != 2 * width:
        raise Refuse("the pads do not fit the rank")
    moved = [*permuted(pads[:width], perm), *permuted(pads[width:], perm)]
    if opset < 11:
        return Change({"pads": tuple(moved)})
    return Change(constants={1: np.array(moved, np.int64)})


# Quantization


def _quantize_carrier(node: ir.Node, opset: int) -> Carrier | None:
    if int_attribute(node, "block_size", 0) != 0:
        return None
    sizes = dims(node.inputs[1])
    if sizes is None or len(sizes) > 1:
        return None
    return first_to_first(node, opset)


def _quantize_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    if dims(node.inputs[1]) in ((), (1,)):
        return NOTHING
    return Change({"axis": inverse(perm)[_axis_of(node, 1)]})


_REDUCE = Handler(_reduce_carrier, _reduce_change)
_ARG = Handler(_arg_carrier, _arg_change)
_SOFTMAX = Handler(first_to_first, _softmax_change)
_QUANTIZE = Handler(_quantize_carrier, _quantize_change)

#: Operators that work along axes.
AXIS_HANDLERS: Mapping[str, Handler] = {
    "Concat": Handler(_concat_carrier, _concat_change),
    "Split": Handler(_split_carrier, _axis_change(0)),
    "Gather": Handler(_gather_carrier, _gather_change),
    "Softmax": _SOFTMAX,
    "LogSoftmax": _SOFTMAX,
    "Slice": Handler(_slice_carrier, _slice_change),
    "Pad": Handler(_pad_carrier, _pad_change),
    "Squeeze": Handler(first_alone, _squeeze_change),
    "Unsqueeze": Handler(output_alone, _unsqueeze_change),
    "ArgMax": _ARG,
    "ArgMin": _ARG,
    "QuantizeLinear": _QUANTIZE,
    "DequantizeLinear": _QUANTIZE,
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"), _REDUCE),
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"), _REDUCE
    ),
}
