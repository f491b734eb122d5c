"""Operators that move elements: channels move along, in the same arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.analysis.attributes import axes, constant_input, int_attribute, ints_attribute
from onnxopt.analysis.expressions import ONE, Expression, product
from onnxopt.analysis.values import constant_array
from onnxopt.channels.atoms import Ids
from onnxopt.channels.followers import (
    AxisRef,
    Follower,
    GatherIndices,
    SliceBounds,
    SplitSizes,
)
from onnxopt.channels.known import moved, nothing_known
from onnxopt.channels.operators.sizes import size_input, stated_size
from onnxopt.channels.tracer import Handler, Tracer, axes_with_channels, references
from onnxopt.rewriting import Refuse

__all__ = ["HANDLERS"]

_Move = Callable[[NDArray[Any]], NDArray[Any]]


def _move(
    tracer: Tracer,
    source: ir.Value,
    output: ir.Value,
    move: _Move,
    followers: Sequence[Follower] = (),
    *,
    in_place: bool = False,
) -> None:
    ids = tracer.of(source)
    assert ids is not None
    transfer = moved([ids.shape], lambda arrays: move(arrays[0]))
    tracer.emit(output, move(ids), [source], transfer, followers, in_place=in_place)


def _source(node: ir.Node, tracer: Tracer) -> tuple[ir.Value, Ids] | None:
    """The first input with its channels, or None when it has none."""
    source = node.inputs[0]
    ids = tracer.of(source)
    return None if source is None or ids is None else (source, ids)


# One shape into another


def _reshape(node: ir.Node, tracer: Tracer) -> None:
    found = _source(node, tracer)
    if found is None:
        return
    shape = tracer.facts.shape(node.outputs[0])
    if shape is None:
        raise Refuse("a rank is not known")
    free = (-1,) if int_attribute(node, "allowzero", 0) else (-1, 0)
    if len(node.inputs) < 2:
        raise Refuse("Reshape of an old opset")
    move = _reshaping(found[0], found[1], shape, tracer)
    output = node.outputs[0]
    followers: list[Follower] = []
    for reference in references(output, move(found[1])):
        follower = size_input(node, 1, reference.axis, reference, free)
        followers.extend(follower)
        target = node.inputs[1]
        assert target is not None
        if 0 in free and stated_size(target, reference.axis) == 0:
            _check_copied(found[1], reference, move(found[1]))
    _move(tracer, found[0], output, move, followers)


def _check_copied(source: Ids, reference: AxisRef, made: Ids) -> None:
    """A size of 0 copies that of the input's axis, which must be the same channels."""
    axis = reference.axis
    if axis >= source.ndim or source.shape[axis] != made.shape[axis]:
        raise Refuse("a size is copied from another axis")


def _flatten(node: ir.Node, tracer: Tracer) -> None:
    found = _source(node, tracer)
    if found is None:
        return
    shape = tracer.facts.shape(found[0])
    if shape is None:
        raise Refuse("a rank is not known")
    axis = int_attribute(node, "axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    flat = (product(shape[:axis]), product(shape[axis:]))
    _move(tracer, found[0], node.outputs[0], _reshaping(*found, flat, tracer))


def _reshaping(source: ir.Value, ids: Ids, target: Sequence[Expression], tracer: Tracer) -> _Move:
    """What a reshape does to arrays of channels.

    Both shapes are parted into the shortest stretches of axes with equal numbers of elements. In a
    stretch with channels all sizes must be known; other stretches hold none before and after.

    Raises:
        Refuse: When that cannot be said.
    """
    given = tracer.facts.shape(source)
    if given is None:
        raise Refuse("a rank is not known")
    full, result = [1] * len(given), [1] * len(target)
    for before, after in _stretches(given, target):
        if all(ids.shape[axis] == 1 for axis in before):
            continue
        for axes_of, sizes, shape in ((before, given, full), (after, target, result)):
            for axis in axes_of:
                size = sizes[axis].constant
                if size is None:
                    raise Refuse("reshaped together with a size that is not known")
                shape[axis] = size
    if math.prod(full) != math.prod(result):
        raise Refuse("reshaped together with a size that is not known")
    return lambda array: np.broadcast_to(array, full).reshape(result)


def _stretches(
    given: Sequence[Expression], target: Sequence[Expression]
) -> list[tuple[list[int], list[int]]]:
    """Axes of two shapes of one number of elements, in the shortest stretches that agree."""
    found: list[tuple[list[int], list[int]]] = []
    left, right = 0, 0
    while left < len(given) or right < len(target):
        before, after = [left] if left < len(given) else [], [right] if right < len(target) else []
        one = product(given[axis] for axis in before)
        other = product(target[axis] for axis in after)
        while one != other:
            grow = other.quotient(one) is not None and one != other
            if grow and before[-1:] and before[-1] + 1 < len(given):
                before.append(before[-1] + 1)
                one *= given[before[-1]]
            elif not grow and after[-1:] and after[-1] + 1 < len(target):
                after.append(after[-1] + 1)
                other *= target[after[-1]]
            else:
                # Nothing to be shown: all that is left is one stretch.
                before, after = list(range(left, len(given))), list(range(right, len(target)))
                break
        if not before and one == ONE and found:
            found[-1][1].extend(after)  # sizes of 1 at the end
        elif not after and other == ONE and found:
            found[-1][0].extend(before)
        else:
            found.append((before, after))
        left, right = left + len(before), right + len(after)
    return found


def _squeeze(node: ir.Node, tracer: Tracer) -> None:
    found = _source(node, tracer)
    if found is None:
        return
    given = axes(node)
    if given is None:
        sizes = tracer.sizes(found[0])
        if None in sizes:
            raise Refuse("a size is not known")
        given = tuple(axis for axis, size in enumerate(sizes) if size == 1)
    dropped = {axis % found[1].ndim for axis in given}
    shape = [size for axis, size in enumerate(found[1].shape) if axis not in dropped]
    _move(tracer, found[0], node.outputs[0], lambda array: array.reshape(shape))


def _unsqueeze(node: ir.Node, tracer: Tracer) -> None:
    found = _source(node, tracer)
    if found is None:
        return
    given = axes(node)
    if given is None:
        raise Refuse("axes are not known")
    rank = found[1].ndim + len(given)
    places = tuple(sorted(axis % rank for axis in given))
    _move(tracer, found[0], node.outputs[0], lambda array: np.expand_dims(array, places))


def _transpose(node: ir.Node, tracer: Tracer) -> None:
    found = _source(node, tracer)
    if found is not None:
        perm = ints_attribute(node, "perm") or tuple(reversed(range(found[1].ndim)))
        _move(tracer, found[0], node.outputs[0], lambda array: array.transpose(perm))


def _expand(node: ir.Node, tracer: Tracer) -> None:
    found = _source(node, tracer)
    if found is None:
        return
    output, ids = node.outputs[0], found[1]
    sizes = tracer.sizes(output)
    shape = (1,) * (len(sizes) - ids.ndim) + ids.shape
    length = tracer.sizes(node.inputs[1])[0]
    if length is None:
        raise Refuse("a rank is not known")
    followers: list[Follower] = []
    for axis in axes_with_channels(ids.reshape(shape)):
        position = axis - (len(sizes) - length)
        if position >= 0:
            followers.extend(size_input(node, 1, position, AxisRef(output, axis), (1,)))
    _move(tracer, found[0], output, lambda array: array.reshape(shape), followers)


def _tile(node: ir.Node, tracer: Tracer) -> None:
    found = _source(node, tracer)
    if found is None:
        return
    repeats = constant_input(node, 1, "the number of repeats")
    if repeats is None or any(repeats[axis] != 1 for axis in axes_with_channels(found[1])):
        raise Refuse("channels are repeated")
    _move(tracer, found[0], node.outputs[0], lambda array: array)


# Several values


def _concat(node: ir.Node, tracer: Tracer) -> None:
    values = [value for value in node.inputs if value is not None]
    given = [tracer.of(value) for value in values]
    known = [each for each in given if each is not None]
    if not known:
        return
    rank = known[0].ndim
    axis = int_attribute(node, "axis", 1) % rank
    output = node.outputs[0]
    if any(other not in (axis,) for each in known for other in axes_with_channels(each)):
        if any(each is None or each.shape != known[0].shape for each in given):
            raise Refuse("joined with others along another axis")
        if known[0].shape[axis] != 1:
            raise Refuse("channels lie along several axes")
        for other in known[1:]:
            tracer.unite(known[0], other)
        # A part of each channel comes from each input, which need not hold the same number.
        tracer.emit(output, known[0], values, nothing_known)
        return
    parts = [
        _channels(value, axis, rank, node, tracer) if each is None else each
        for value, each in zip(values, given, strict=True)
    ]
    transfer = moved([part.shape for part in parts], lambda arrays: np.concatenate(arrays, axis))
    joined = np.concatenate(parts, axis)
    tracer.emit(output, joined, values, transfer, in_place=joined.size == joined.shape[axis])


def _channels(value: ir.Value, axis: int, rank: int, node: ir.Node, tracer: Tracer) -> Ids:
    """Channels for a value whose channels are not followed: they stay."""
    size = tracer.sizes(value)[axis]
    if size is None:
        raise Refuse("joined with an unknown number of channels")
    ids = tracer.fresh(size)
    tracer.pin(ids, "channels that come from elsewhere", node)
    shape = [1] * rank
    shape[axis] = size
    return ids.reshape(shape)


def _split(node: ir.Node, tracer: Tracer) -> None:
    found = _source(node, tracer)
    if found is None:
        return
    source, ids = found
    axis = int_attribute(node, "axis", 0) % ids.ndim
    if axis not in axes_with_channels(ids):
        for output in node.outputs:
            _move(tracer, source, output, lambda array: array)
        return
    constant_input(node, 1, "the sizes of a Split")
    start = 0
    spans: list[tuple[int, int]] = []
    for output in node.outputs:
        size = tracer.sizes(output)[axis]
        if size is None:
            raise Refuse("the sizes of a Split are not known")
        spans.append((start, start + size))
        start += size
    if start != ids.shape[axis]:
        raise Refuse("the sizes of a Split are not known")
    tracer.followers.append(SplitSizes(node, axis, tuple(end - first for first, end in spans)))
    for output, (first, last) in zip(node.outputs, spans, strict=True):
        _move(tracer, source, output, _taking(axis, slice(first, last)), in_place=True)


def _taking(axis: int, which: slice) -> _Move:
    return lambda array: array[(slice(None),) * axis + (which,)]


def _slice(node: ir.Node, tracer: Tracer) -> None:
    found = _source(node, tracer)
    if found is None:
        return
    source, ids = found
    starts = ints_attribute(node, "starts") or constant_input(node, 1, "the start of a slice")
    ends = ints_attribute(node, "ends") or constant_input(node, 2, "the end of a slice")
    if starts is None or ends is None:
        raise Refuse("the bounds of a slice are not known")
    along = axes(node, 3) or tuple(range(len(starts)))
    steps = constant_input(node, 4, "the step of a slice") or (1,) * len(starts)
    which = [slice(None)] * ids.ndim
    followers: list[Follower] = []
    with_channels = axes_with_channels(ids)
    for position, given in enumerate(along):
        axis = given % ids.ndim
        if axis not in with_channels:
            continue
        if steps[position] != 1:
            raise Refuse("every so many channels are taken")
        start, end, _ = slice(starts[position], ends[position]).indices(ids.shape[axis])
        which[axis] = slice(start, end)
        followers.append(SliceBounds(node, position, start, end, AxisRef(source, axis)))
    chosen = tuple(which)
    _move(tracer, source, node.outputs[0], lambda array: array[chosen], followers)


def _gather(node: ir.Node, tracer: Tracer) -> None:
    found = _source(node, tracer)
    if found is None:
        return
    source, ids = found
    axis = int_attribute(node, "axis", 0) % ids.ndim
    output = node.outputs[0]
    if axis not in axes_with_channels(ids):
        added = tracer.rank(node.inputs[1])
        shape = (*ids.shape[:axis], *(1,) * added, *ids.shape[axis + 1 :])
        _move(tracer, source, output, lambda array: array.reshape(shape))
        return
    indices = constant_array(node.inputs[1])
    if indices is None or indices.ndim > 1:
        raise Refuse("channels are chosen when the model runs")
    chosen = np.asarray(indices) % ids.shape[axis]
    follower = GatherIndices(node, AxisRef(source, axis))
    # One that is taken by itself is kept as the last of what comes out.
    if np.unique(chosen).size != chosen.size:
        raise Refuse("channels are repeated")
    _move(tracer, source, output, lambda array: array.take(chosen, axis), [follower])


def _shape(node: ir.Node, tracer: Tracer) -> None:
    """Shape may be read where the number of channels is not what is taken from it."""
    found = _source(node, tracer)
    if found is None:
        return
    rank = found[1].ndim
    start = int_attribute(node, "start", 0)
    stop = int_attribute(node, "end", rank)
    covered = range(rank)[start:stop]
    with_channels = [axis for axis in covered if axis in axes_with_channels(found[1])]
    output = node.outputs[0]
    forbidden = {axis - covered.start for axis in with_channels}
    if output.is_graph_output() or any(
        _reads_sizes(reader, output, forbidden, len(covered)) for reader in output.consumers()
    ):
        raise Refuse("the number of channels is read from the shape")
    tracer.only_counted(found[0])


def _reads_sizes(reader: ir.Node, shape: ir.Value, forbidden: set[int], length: int) -> bool:
    if reader.inputs[0] is not shape:
        return True
    if reader.op_type == "Gather":
        indices = constant_array(reader.inputs[1])
        return indices is None or any(
            int(index) % length in forbidden for index in indices.reshape(-1)
        )
    if reader.op_type == "Slice" and len(reader.inputs) >= 3:
        bounds = [constant_array(value) for value in reader.inputs[1:3]]
        if len(reader.inputs) > 4 or any(each is None or each.size != 1 for each in bounds):
            return True
        first, last = (int(each.reshape(())) for each in bounds if each is not None)
        return any(place in forbidden for place in range(length)[first:last])
    return True


HANDLERS: dict[str, Handler] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Shape": _shape,
}
