"""Which operators work as well on tensors whose axes are permuted, and what changes in the node.

An operator *carries* a layout between some of its inputs and outputs: if those are all permuted in
the same way, and its attributes and constants are adapted, it computes the permuted result. An
operator that takes axes away (Squeeze, reductions, Flatten, a Reshape) carries the layout on its
input side alone, for those permutations that leave the order of the remaining elements; one that
adds axes (Unsqueeze, some Reshapes) on its output side alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import (
    axes,
    constant_input,
    int_attribute,
    ints_attribute,
    string_attribute,
)
from onnxopt.analysis.values import Dim, constant, constant_array, dims, has_one_use, rank
from onnxopt.op_traits import Trait, has_trait, is_standard
from onnxopt.rewriting import Refuse

from ._transpose_permutations import Permutation, inverse, permuted

__all__ = ["Carrier", "Change", "carrier_of", "change_for"]

#: A constant that others read too is stored a second time, permuted, up to so many bytes.
_MOST_BYTES_TWICE = 1024


@dataclasses.dataclass(frozen=True)
class Carrier:
    """Between which inputs and outputs a node carries a layout.

    Attributes:
        inputs: Their indices.
        outputs: Their indices.
        rank: Rank of all of them.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rank: int


@dataclasses.dataclass(frozen=True)
class Change:
    """What to change in a node so that it works on permuted tensors.

    Attributes:
        attributes: New values of attributes.
        constants: New constants by input index, which may be one beyond the last input.
    """

    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    constants: Mapping[int, np.ndarray[Any, Any]] = dataclasses.field(default_factory=dict)


_NOTHING = Change()


def carrier_of(node: ir.Node, opset: int) -> Carrier | None:
    """Where a node carries a layout, or None when it does not or that is not known."""
    if not is_standard(node) or any(value is None for value in node.inputs[:1]):
        return None
    handler = _handler(node)
    if handler is None:
        return None
    try:
        return handler.carrier(node, opset)
    except Refuse:  # what is not known is not carried; the search goes on elsewhere
        return None


def change_for(node: ir.Node, carrier: Carrier, perm: Permutation, opset: int) -> Change:
    """What changes in a node whose carried tensors are all given and taken permuted by ``perm``.

    Raises:
        Refuse: When the operator cannot work that way.
    """
    handler = _handler(node)
    assert handler is not None
    return handler.change(node, perm, opset)


@dataclasses.dataclass(frozen=True)
class _Handler:
    carrier: Callable[[ir.Node, int], Carrier | None]
    change: Callable[[ir.Node, Permutation, int], Change]


def _handler(node: ir.Node) -> _Handler | None:
    if node.op_type in _HANDLERS:
        return _HANDLERS[node.op_type]
    if has_trait(node, Trait.UNARY):
        return _UNARY
    return _BROADCAST if has_trait(node, Trait.BROADCAST) else None


def _known_rank(value: ir.Value | None) -> int:
    known = rank(value)
    if known is None:
        raise Refuse("the rank is not known")
    return known


def _known_axes(given: Sequence[int] | None, width: int) -> tuple[int, ...]:
    if given is None:
        raise Refuse("the axes are not given")
    return tuple(axis % width for axis in given)


def _is_order(sequence: Sequence[int]) -> bool:
    return list(sequence) == sorted(sequence)


def _require_order(kept: Sequence[int]) -> None:
    if not _is_order(kept):
        raise Refuse("the axes that remain would change their order")


def _first_to_first(node: ir.Node, opset: int) -> Carrier:
    return Carrier((0,), (0,), _known_rank(node.inputs[0]))


def _first_alone(node: ir.Node, opset: int) -> Carrier:
    return Carrier((0,), (), _known_rank(node.inputs[0]))


def _output_alone(node: ir.Node, opset: int) -> Carrier:
    return Carrier((), (0,), _known_rank(node.outputs[0]))


def _no_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    return _NOTHING


def _given_like(node: ir.Node, index: int, numbers: Sequence[int]) -> Change:
    """New axes (or the like), as attribute ``axes`` or as input, however the node has them."""
    if "axes" in node.attributes:
        return Change({"axes": tuple(numbers)})
    return Change(constants={index: np.array(numbers, np.int64)})


# Element by element


def _broadcast_carrier(node: ir.Node, opset: int) -> Carrier | None:
    if any(value is None for value in node.inputs):
        return None
    width = _known_rank(node.outputs[0])
    seats: list[int] = []
    for index, value in enumerate(node.inputs):
        known = _known_rank(value)
        if constant(value) is not None:
            if known > width:
                return None
        elif known == width:
            seats.append(index)
        elif known != 0:
            return None  # it would need axes of its own first
    return Carrier(tuple(seats), (0,), width) if seats else None


def _broadcast_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    constants: dict[int, np.ndarray[Any, Any]] = {}
    for index, value in enumerate(node.inputs):
        tensor = constant(value)
        if tensor is None or tensor.size == 1:
            continue
        constants[index] = _permuted_constant(value, perm)
    return Change(constants=constants)


def _permuted_constant(
    value: ir.Value | None, perm: Permutation, keep_rank: bool = False
) -> np.ndarray[Any, Any]:
    """A constant operand, aligned at the last axis as in broadcasting, permuted."""
    array = constant_array(value)
    if value is None or array is None:
        raise Refuse("a constant holds no numbers")
    if not has_one_use(value) and array.nbytes > _MOST_BYTES_TWICE:
        raise Refuse("a large constant is read elsewhere")
    full = array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(perm)
    leading = 0
    while not keep_rank and leading < full.ndim - 1 and full.shape[leading] == 1:
        leading += 1
    return np.ascontiguousarray(full.reshape(full.shape[leading:]))


# Along an axis


def _axis_of(node: ir.Node, default: int | None) -> int:
    axis = int_attribute(node, "axis", -100 if default is None else default)
    if axis == -100:
        raise Refuse("the axis is missing")
    return axis % _known_rank(node.inputs[0])


def _axis_change(default: int | None) -> Callable[[ir.Node, Permutation, int], Change]:
    def change(node: ir.Node, perm: Permutation, opset: int) -> Change:
        return Change({"axis": inverse(perm)[_axis_of(node, default)]})

    return change


def _concat_carrier(node: ir.Node, opset: int) -> Carrier | None:
    if any(value is None for value in node.inputs):
        return None
    seats = tuple(index for index, value in enumerate(node.inputs) if constant(value) is None)
    return Carrier(seats, (0,), _known_rank(node.outputs[0])) if seats else None


def _concat_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    axis = int_attribute(node, "axis", 0) % len(perm)
    constants = {
        index: _permuted_constant(value, perm, keep_rank=True)
        for index, value in enumerate(node.inputs)
        if constant(value) is not None
    }
    return Change({"axis": inverse(perm)[axis]}, constants)


def _split_carrier(node: ir.Node, opset: int) -> Carrier:
    return Carrier((0,), tuple(range(len(node.outputs))), _known_rank(node.inputs[0]))


def _gather_carrier(node: ir.Node, opset: int) -> Carrier | None:
    width = _known_rank(node.inputs[0])
    match _known_rank(node.inputs[1]):
        case 0:
            return Carrier((0,), (), width)
        case 1:
            return Carrier((0,), (0,), width)
    return None


def _gather_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    axis = _axis_of(node, 0)
    if rank(node.inputs[1]) == 0:
        _require_order([kept for kept in perm if kept != axis])
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
    return None if given is None else _known_axes(given, _known_rank(node.inputs[0]))


def _reduce_carrier(node: ir.Node, opset: int) -> Carrier:
    _reduce_axes(node, opset)
    keeps = int_attribute(node, "keepdims", 1) != 0
    return (_first_to_first if keeps else _first_alone)(node, opset)


def _reduce_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    reduced = _reduce_axes(node, opset)
    if reduced is None:
        return _NOTHING
    if int_attribute(node, "keepdims", 1) == 0:
        _require_order([axis for axis in perm if axis not in reduced])
    places = inverse(perm)
    return _given_like(node, 1, sorted(places[axis] for axis in reduced))


def _arg_carrier(node: ir.Node, opset: int) -> Carrier:
    keeps = int_attribute(node, "keepdims", 1) != 0
    return (_first_to_first if keeps else _first_alone)(node, opset)


def _arg_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    axis = _axis_of(node, 0)
    if int_attribute(node, "keepdims", 1) == 0:
        _require_order([kept for kept in perm if kept != axis])
    return Change({"axis": inverse(perm)[axis]})


def _squeeze_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    squeezed = _known_axes(axes(node), len(perm))
    _require_order([axis for axis in perm if axis not in squeezed])
    places = inverse(perm)
    return _given_like(node, 1, sorted(places[axis] for axis in squeezed))


def _unsqueeze_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    added = _known_axes(axes(node), len(perm))
    _require_order([axis for axis in perm if axis not in added])
    places = inverse(perm)
    return _given_like(node, 1, sorted(places[axis] for axis in added))


def _slice_axes(node: ir.Node, opset: int) -> tuple[int, ...]:
    width = _known_rank(node.inputs[0])
    if opset < 10:
        starts = ints_attribute(node, "starts") or ()
        given = ints_attribute(node, "axes")
        return _known_axes(range(len(starts)) if given is None else given, width)
    given = constant_input(node, 3, "axes")
    if given is None:
        sizes = dims(node.inputs[1])
        if sizes is None or not isinstance(sizes[0], int):
            raise Refuse("which axes are sliced is not known")
        given = tuple(range(sizes[0]))
    return _known_axes(given, width)


def _slice_carrier(node: ir.Node, opset: int) -> Carrier:
    _slice_axes(node, opset)
    return _first_to_first(node, opset)


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
    carrier = _first_to_first(node, opset)
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


# Sizes by axis


def _sizes_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    """Tile and Expand with constant repeats or sizes."""
    sizes = constant_input(node, 1, "a size")
    if sizes is None or len(sizes) != len(perm):
        raise Refuse("the sizes do not fit the rank")
    return Change(constants={1: np.array(permuted(sizes, perm), np.int64)})


def _sizes_carrier(node: ir.Node, opset: int) -> Carrier | None:
    carrier = _first_to_first(node, opset)
    sizes = constant_input(node, 1, "a size")
    return carrier if sizes is not None and len(sizes) == carrier.rank else None


def _resize_factors(node: ir.Node, opset: int) -> tuple[int | None, tuple[float, ...]]:
    """Index of the input (None: an attribute) that holds scales or sizes by axis, and those."""
    if node.op_type == "Upsample" and opset < 9:
        attribute = node.attributes.get("scales")
        if attribute is None or attribute.is_ref():
            raise Refuse("the scales are not known")
        return None, tuple(attribute.as_floats())
    candidates = (1,) if opset < 11 else (2, 3)
    for index in candidates:
        if len(node.inputs) <= index or node.inputs[index] is None:
            continue
        array = constant_array(node.inputs[index])
        if array is None:
            raise Refuse("scales or sizes are not constant")
        if array.size:
            return index, tuple(array.reshape(-1).tolist())
    raise Refuse("neither scales nor sizes are given")


def _resize_carrier(node: ir.Node, opset: int) -> Carrier | None:
    carrier = _first_to_first(node, opset)
    if string_attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    if string_attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return None
    _, factors = _resize_factors(node, opset)
    given = ints_attribute(node, "axes")
    return carrier if len(factors) == (carrier.rank if given is None else len(given)) else None


def _resize_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    """Interpolation needs the two outer axes left as they are, which is how runtimes do it."""
    places = inverse(perm)
    index, factors = _resize_factors(node, opset)
    given = ints_attribute(node, "axes")
    resized = set(_resized_axes(node, index, factors, given))
    if string_attribute(node, "mode", "nearest") != "nearest" and {
        places[axis] for axis in resized
    } & {0, 1}:
        raise Refuse("an outer axis would be interpolated")
    if given is not None:
        return Change({"axes": tuple(places[axis % len(perm)] for axis in given)})
    moved = permuted(factors, perm)
    if index is None:
        return Change({"scales": moved})
    dtype = np.int64 if index == 3 else np.float32
    return Change(constants={index: np.array(moved, dtype)})


def _resized_axes(
    node: ir.Node,
    index: int | None,
    factors: Sequence[float],
    given: Sequence[int] | None,
) -> list[int]:
    width = _known_rank(node.inputs[0])
    order = range(width) if given is None else [axis % width for axis in given]
    sizes: Sequence[Dim] = dims(node.inputs[0]) or ()
    same = [
        factor == (sizes[axis] if index == 3 else 1)
        for axis, factor in zip(order, factors, strict=True)
    ]
    return [axis for axis, unchanged in zip(order, same, strict=True) if not unchanged]


# Quantization


def _quantize_carrier(node: ir.Node, opset: int) -> Carrier | None:
    if int_attribute(node, "block_size", 0) != 0:
        return None
    sizes = dims(node.inputs[1])
    if sizes is None or len(sizes) > 1:
        return None
    return _first_to_first(node, opset)


def _quantize_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    if dims(node.inputs[1]) in ((), (1,)):
        return _NOTHING
    return Change({"axis": inverse(perm)[_axis_of(node, 1)]})


# Reshape and Flatten, as far as only axes of one element move


def _moved_order(sizes: Sequence[Dim] | None, perm: Permutation) -> list[int]:
    """Axes of more than one element, in their new order, which must be the old one."""
    if sizes is None:
        raise Refuse("the shape is not known")
    kept = [axis for axis in perm if sizes[axis] != 1]
    _require_order(kept)
    return kept


def _reshape_carrier(node: ir.Node, opset: int) -> Carrier | None:
    shape = constant_input(node, 1, "the shape")
    width = rank(node.inputs[0])
    if shape is None:
        return None
    if width is None or len(shape) > width:
        return Carrier((), (0,), len(shape))
    return Carrier((0,), (), width)


def _reshape_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    shape = constant_input(node, 1, "the shape")
    assert shape is not None
    source = dims(node.inputs[0])
    literal = int_attribute(node, "allowzero", 0) == 1
    from_source = source is not None and len(shape) <= len(source)
    if from_source:
        _moved_order(source, perm)
        moved = shape
    else:
        _moved_order(dims(node.outputs[0]), perm)
        moved = permuted(shape, perm)
    if literal:
        return Change(constants={1: np.array(moved, np.int64)})
    target = list(moved)
    for place, size in enumerate(moved):
        if size != 0 or perm[place] == place:
            continue
        # A 0 copies the axis of the input at its own place, where something else stands now.
        copied = None if source is None else source[place if from_source else perm[place]]
        if not isinstance(copied, int) or copied == 0:
            raise Refuse("a 0 of the shape would copy another axis")
        target[place] = copied
    return Change(constants={1: np.array(target, np.int64)})


def _flatten_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    width = len(perm)
    axis = int_attribute(node, "axis", 1)
    axis = axis + width if axis < 0 else axis
    kept = _moved_order(dims(node.inputs[0]), perm)
    places = inverse(perm)
    before = [places[each] for each in kept if each < axis]
    return Change({"axis": max(before) + 1 if before else 0})


_UNARY = _Handler(_first_to_first, _no_change)
_BROADCAST = _Handler(_broadcast_carrier, _broadcast_change)
_REDUCE = _Handler(_reduce_carrier, _reduce_change)
_ARG = _Handler(_arg_carrier, _arg_change)
_SOFTMAX = _Handler(_first_to_first, _softmax_change)
_RESIZE = _Handler(_resize_carrier, _resize_change)
_QUANTIZE = _Handler(_quantize_carrier, _quantize_change)
_SIZES = _Handler(_sizes_carrier, _sizes_change)

_HANDLERS: Mapping[str, _Handler] = {
    "Concat": _Handler(_concat_carrier, _concat_change),
    "Split": _Handler(_split_carrier, _axis_change(0)),
    "Gather": _Handler(_gather_carrier, _gather_change),
    "Softmax": _SOFTMAX,
    "LogSoftmax": _SOFTMAX,
    "Slice": _Handler(_slice_carrier, _slice_change),
    "Pad": _Handler(_pad_carrier, _pad_change),
    "Squeeze": _Handler(_first_alone, _squeeze_change),
    "Unsqueeze": _Handler(_output_alone, _unsqueeze_change),
    "Reshape": _Handler(_reshape_carrier, _reshape_change),
    "Flatten": _Handler(_first_alone, _flatten_change),
    "Tile": _SIZES,
    "Expand": _SIZES,
    "Resize": _RESIZE,
    "Upsample": _RESIZE,
    "ArgMax": _ARG,
    "ArgMin": _ARG,
    "QuantizeLinear": _QUANTIZE,
    "DequantizeLinear": _QUANTIZE,
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"), _REDUCE),
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"), _REDUCE
    ),
}
