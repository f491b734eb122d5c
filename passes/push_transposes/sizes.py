"""Operators whose inputs give sizes by axis, and reshaping: how they carry a layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import (
    constant_input,
    int_attribute,
    ints_attribute,
    string_attribute,
)
from onnxopt.analysis.values import Dim, constant_array, dims, rank
from onnxopt.rewriting import Refuse

from .carriers import (
    Carrier,
    Change,
    Handler,
    first_alone,
    first_to_first,
    known_rank,
    no_change,
    require_order,
)
from .permutations import Permutation, inverse, permuted

__all__ = ["SIZE_HANDLERS"]


# Sizes by axis


def _sizes_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    """Tile and Expand with constant repeats or sizes."""
    sizes = constant_input(node, 1, "a size")
    if sizes is None or len(sizes) != len(perm):
        raise Refuse("the sizes do not fit the rank")
    return Change(constants={1: np.array(permuted(sizes, perm), np.int64)})


def _sizes_carrier(node: ir.Node, opset: int) -> Carrier | None:
    carrier = first_to_first(node, opset)
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
    carrier = first_to_first(node, opset)
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
    width = known_rank(node.inputs[0])
    order = range(width) if given is None else [axis % width for axis in given]
    sizes: Sequence[Dim] = dims(node.inputs[0]) or ()
    same = [
        factor == (sizes[axis] if index == 3 else 1)
        for axis, factor in zip(order, factors, strict=True)
    ]
    return [axis for axis, unchanged in zip(order, same, strict=True) if not unchanged]


# Reshape and Flatten, as far as only axes of one element move


def _moved_order(sizes: Sequence[Dim] | None, perm: Permutation) -> list[int]:
    """Axes of more than one element, in their new order, which must be the old one."""
    if sizes is None:
        raise Refuse("the shape is not known")
    kept = [axis for axis in perm if sizes[axis] != 1]
    require_order(kept)
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


# Shape


def _shape_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    """The sizes come permuted, and are put back into order."""
    width, places = len(perm), inverse(perm)
    start, end, _ = slice(
        int_attribute(node, "start", 0), int_attribute(node, "end", width)
    ).indices(width)
    return Change({"start": None, "end": None}, order=tuple(places[start:end]))


_RESIZE = Handler(_resize_carrier, _resize_change)
_SIZES = Handler(_sizes_carrier, _sizes_change)

#: Operators that are given sizes by axis, or give them.
SIZE_HANDLERS: Mapping[str, Handler] = {
    "Tile": _SIZES,
    "Expand": _SIZES,
    "Resize": _RESIZE,
    "Upsample": _RESIZE,
    "Reshape": Handler(_reshape_carrier, _reshape_change),
    "Flatten": Handler(first_alone, _flatten_change),
    "Shape": Handler(first_alone, _shape_change),
    "Size": Handler(first_alone, no_change),
}
