"""Operators that move or repeat elements: reshaping, cutting, joining, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from onnxopt.rewriting import Refuse
from onnxopt.training.node_view import Builder, Call, NodeView
from onnxopt.training.numbers import Host, integers, torch_type

__all__ = ["BUILDERS", "bounded_slice", "reshaped", "squeezed_shape", "unsqueezed_shape"]


def reshaped(shape: Sequence[Any], sizes: Sequence[Any], zero_is_zero: bool) -> list[Any]:
    """The sizes that Reshape asks for: 0 stands for the input's own, unless it is a size."""
    if zero_is_zero:
        return list(sizes)
    return [
        shape[axis] if isinstance(size, int) and size == 0 else size
        for axis, size in enumerate(sizes)
    ]


def _reshape(node: NodeView) -> Call:
    zero_is_zero = bool(node.int_attribute("allowzero", 0))
    old = node.ints_attribute("shape")
    known = node.constant(1)
    if old is not None or known is not None:
        fixed = list(old) if old is not None else integers(known) if known is not None else []
        if zero_is_zero or 0 not in fixed:
            return Call(lambda x: x.reshape(fixed), (node.tensor(0),))
        return Call(lambda x: x.reshape(reshaped(x.shape, fixed, False)), (node.tensor(0),))

    def reshape(x: Tensor, sizes: Host) -> Tensor:
        return x.reshape(reshaped(x.shape, integers(sizes), zero_is_zero))

    return Call(reshape, (node.tensor(0), node.host(1)))


def _flatten(node: NodeView) -> Call:
    axis = node.int_attribute("axis", 1)

    def flatten(x: Tensor) -> Tensor:
        at = axis if axis >= 0 else axis + x.ndim
        if at == 0:
            return x.reshape(1, -1)
        if at == 1 and x.ndim > 1:
            return x.flatten(1)
        before = 1
        for size in x.shape[:at]:
            before = before * size
        return x.reshape(before, -1) if x.numel() else x.reshape(before, 0)

    return Call(flatten, (node.tensor(0),))


def _transpose(node: NodeView) -> Call:
    order = node.ints_attribute("perm")
    if order is None:
        return Call(lambda x: x.permute(*range(x.ndim - 1, -1, -1)), (node.tensor(0),))
    return Call(lambda x: x.permute(order), (node.tensor(0),))


def squeezed_shape(shape: Sequence[Any], axes: Sequence[int] | None) -> list[Any]:
    """A shape without some axes of size 1; without all of them for None."""
    if axes is None:
        return [size for size in shape if size != 1]
    gone = {axis % len(shape) for axis in axes}
    return [size for axis, size in enumerate(shape) if axis not in gone]


def unsqueezed_shape(shape: Sequence[Any], axes: Sequence[int]) -> list[Any]:
    """A shape with axes of size 1 put in; the axes count in the result."""
    rank = len(shape) + len(axes)
    added, rest = {axis % rank for axis in axes}, iter(shape)
    return [1 if axis in added else next(rest) for axis in range(rank)]


def _squeeze(node: NodeView) -> Call:
    if node.is_computed(1):
        return Call(lambda x, axes: x.squeeze(integers(axes)), (node.tensor(0), node.host(1)))
    axes = node.axes()
    if axes is None:
        return Call(lambda x: x.squeeze(), (node.tensor(0),))
    return Call(lambda x: x.squeeze(axes), (node.tensor(0),))


def _unsqueeze(node: NodeView) -> Call:
    def unsqueeze(x: Tensor, axes: Host) -> Tensor:
        return x.reshape(unsqueezed_shape(x.shape, integers(axes)))

    if node.is_computed(1):
        return Call(unsqueeze, (node.tensor(0), node.host(1)))
    axes = node.axes() or ()
    if len(axes) == 1:
        return Call(lambda x: x.unsqueeze(axes[0]), (node.tensor(0),))
    return Call(lambda x: x.reshape(unsqueezed_shape(x.shape, axes)), (node.tensor(0),))


def _concat(node: NodeView) -> Call:
    axis = node.int_attribute("axis", 1)
    return Call(lambda *tensors: torch.cat(tensors, axis), node.tensors())


def _split(node: NodeView) -> Call:
    axis, parts = node.int_attribute("axis", 0), node.outputs
    known = node.ints_attribute("split")
    node.ignore_attributes("num_outputs")  # the outputs can be counted

    def split(x: Tensor, given: Host | None) -> Any:
        if known is not None:
            sizes = list(known)
        elif given is not None:
            sizes = integers(given)
        else:
            each = -(-x.shape[axis] // parts)  # the last part is smaller when it has to be
            sizes = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)]
        pieces = torch.split(x, sizes, axis)
        return pieces[0] if parts == 1 else pieces

    return Call(split, (node.tensor(0), node.host(1)))


def bounded_slice(size: Any, start: Any, end: Any, step: int) -> slice | range:
    """The elements that Slice takes along an axis; a range where it goes backwards."""
    if step > 0:
        return slice(start, end, step)
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    return range(min(max(start, -1), size - 1), min(max(end, -1), size - 1), step)


def _slice(node: NodeView) -> Call:
    old = node.ints_attribute("starts")
    if old is not None:
        starts, ends, axes = old, node.ints_attribute("ends") or (), node.ints_attribute("axes")
        along = axes if axes is not None else tuple(range(len(starts)))
        known = list(zip(along, starts, ends, (1,) * len(starts), strict=True))
        return Call(lambda x: _sliced(x, known), (node.tensor(0),))
    fixed = [node.constant(index) for index in (1, 2, 3, 4)]
    if all(
        array is not None or node.input(index) is None for index, array in enumerate(fixed, start=1)
    ):
        known = _cuts(*fixed)
        return Call(lambda x: _sliced(x, known), (node.tensor(0),))

    def computed(x: Tensor, *given: Host | None) -> Tensor:
        return _sliced(x, _cuts(*given))

    return Call(computed, (node.tensor(0), *(node.host(index) for index in (1, 2, 3, 4))))


def _cuts(*given: Host | None) -> list[tuple[int, Any, Any, int]]:
    """Axis, start, end and step of each cut."""
    starts, ends, axes, steps = (None if array is None else integers(array) for array in given)
    assert starts is not None
    assert ends is not None
    along = list(range(len(starts))) if axes is None else axes
    return list(zip(along, starts, ends, steps or [1] * len(starts), strict=True))


def _sliced(x: Tensor, cuts: Sequence[tuple[int, Any, Any, int]]) -> Tensor:
    taken: list[Any] = [slice(None)] * x.ndim
    for axis, start, end, step in cuts:
        place = bounded_slice(x.shape[axis], start, end, step)
        if isinstance(place, range):
            x = x.index_select(axis, torch.tensor(list(place), dtype=torch.int64, device=x.device))
        else:
            taken[axis] = place
    return x[tuple(taken)] if taken else x


def _expand(node: NodeView) -> Call:
    def expand(x: Tensor, sizes: Host) -> Tensor:
        wanted = integers(sizes)
        rank = max(x.ndim, len(wanted))
        own = [1] * (rank - x.ndim) + list(x.shape)
        wanted = [1] * (rank - len(wanted)) + wanted
        return x.expand(
            [
                size if isinstance(one, int) and one == 1 else one
                for one, size in zip(own, wanted, strict=True)
            ]
        )

    return Call(expand, (node.tensor(0), node.host(1)))


def _tile(node: NodeView) -> Call:
    node.require(node.opset >= 6, "Tile along one axis")

    def tile(x: Tensor, repeats: Host) -> Tensor:
        return x.repeat(integers(repeats))

    return Call(tile, (node.tensor(0), node.host(1)))


def _pad(node: NodeView) -> Call:
    mode = node.string_attribute("mode", "constant")
    node.require(mode in ("constant", "reflect", "edge", "wrap"), f"padding mode {mode}")
    old = node.ints_attribute("pads")

    def pad(
        x: Tensor, pads: Sequence[Any], axes: Sequence[int] | None, filled: float | int
    ) -> Tensor:
        along = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes]
        half = len(pads) // 2
        both: list[tuple[Any, Any]] = [(0, 0)] * x.ndim
        for axis, before, after in zip(along, pads[:half], pads[half:], strict=True):
            both[axis] = (before, after)
        if mode != "constant":
            return _padded_by_copy(x, both, mode)
        flat = [each for pair in reversed(both) for each in pair]
        while flat and isinstance(flat[-1], int) and flat[-1] == 0:
            flat.pop()
        if not flat:
            return x
        flat += [0] * (len(flat) % 2)
        return functional.pad(x, flat, value=filled)

    if old is not None:
        value = node.float_attribute("value", 0.0)
        return Call(lambda x: pad(x, old, None, value), (node.tensor(0),))

    def computed(x: Tensor, pads: Host, value: Host | None, axes: Host | None) -> Tensor:
        filled = 0 if value is None else value.reshape(()).item()
        return pad(x, integers(pads), None if axes is None else integers(axes), filled)

    return Call(computed, (node.tensor(0), *(node.host(index) for index in (1, 2, 3))))


def _padded_by_copy(x: Tensor, both: Sequence[tuple[Any, Any]], mode: str) -> Tensor:
    """Pad with elements of the tensor itself; negative padding cuts."""
    for axis, (before, after) in enumerate(both):
        size = x.shape[axis]
        if before == 0 and after == 0:
            continue
        cut_before, cut_after = max(-before, 0), max(-after, 0)
        x = x.narrow(axis, cut_before, size - cut_before - cut_after)
        before, after, size = max(before, 0), max(after, 0), x.shape[axis]
        places = torch.arange(-before, size + after, device=x.device)
        if mode == "edge":
            places = places.clamp(0, size - 1)
        elif mode == "wrap":
            places = places % size
        else:
            period = max(2 * (size - 1), 1)
            places = places % period
            places = torch.where(places >= size, period - places, places)
        x = x.index_select(axis, places)
    return x


def _depth_to_space(node: NodeView) -> Call:
    block = node.int_attribute("blocksize", 1)
    depth_first = node.string_attribute("mode", "DCR") == "DCR"

    def depth_to_space(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if depth_first:
            x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            x = x.reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(n, c // block**2, h * block, w * block)

    return Call(depth_to_space, (node.tensor(0),))


def _space_to_depth(node: NodeView) -> Call:
    block = node.int_attribute("blocksize", 1)
    depth_first = node.string_attribute("mode", "DCR") == "DCR"

    def space_to_depth(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // block, block, w // block, block)
        x = x.permute(0, 3, 5, 1, 2, 4) if depth_first else x.permute(0, 1, 3, 5, 2, 4)
        return x.reshape(n, c * block**2, h // block, w // block)

    return Call(space_to_depth, (node.tensor(0),))


def _identity(node: NodeView) -> Call:
    return Call(lambda x: x, (node.tensor(0),))


def _dropout(node: NodeView) -> Call:
    """Drops nothing: the importer trains the model that runs, not the one that was trained."""
    node.ignore_attributes("ratio", "seed")
    if node.opset < 7:
        node.require(bool(node.int_attribute("is_test", 0)), "Dropout that drops")
    trains = node.number(2) if node.input(2) is not None else False
    node.require(trains is not None and not trains, "Dropout that drops")
    if node.outputs == 1:
        return Call(lambda x: x, (node.tensor(0),))
    is_bool = node.opset >= 10

    def with_mask(x: Tensor) -> Any:
        return x, torch.ones_like(x, dtype=torch.bool if is_bool else x.dtype)

    return Call(with_mask, (node.tensor(0),))


def _cast(node: NodeView) -> Call:
    to = node.type_attribute("to", ir.DataType.FLOAT)
    node.ignore_attributes("saturate", "round_mode")  # of 8-bit floats
    if to.is_integer() and to.bitwidth < 8:
        raise Refuse(f"element type {to.name}")
    dtype = torch_type(to)

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype)

    return Call(cast, (node.tensor(0),))


def _cast_like(node: NodeView) -> Call:
    node.ignore_attributes("saturate", "round_mode")
    like = node.input(1)
    known = None if like is None else like.dtype
    node.require(known is None or known.bitwidth >= 8, "element types of less than 8 bits")
    return Call(lambda x, like: x.to(like.dtype), (node.tensor(0), node.tensor(1)))


def _trilu(node: NodeView) -> Call:
    keep = torch.triu if node.int_attribute("upper", 1) else torch.tril

    def trilu(x: Tensor, diagonal: Host | None) -> Tensor:
        return keep(x, 0 if diagonal is None else integers(diagonal)[0])

    return Call(trilu, (node.tensor(0), node.host(1)))


def _reverse_sequence(node: NodeView) -> Call:
    batch, time = node.int_attribute("batch_axis", 1), node.int_attribute("time_axis", 0)

    def reverse(x: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(x.shape[time], device=x.device)
        steps = steps.reshape([-1 if axis == time else 1 for axis in range(x.ndim)])
        ends = lengths.reshape([-1 if axis == batch else 1 for axis in range(x.ndim)])
        source = torch.where(steps < ends, ends - 1 - steps, steps)
        return x.gather(time, source.expand(x.shape))

    return Call(reverse, (node.tensor(0), node.tensor(1)))


BUILDERS: dict[str, Builder] = {
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Identity": _identity,
    "Pad": _pad,
    "Reshape": _reshape,
    "ReverseSequence": _reverse_sequence,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
