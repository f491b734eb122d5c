"""Slices as numbers: reading Slice nodes of every opset, and composing two slices of one axis."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from onnxopt.analysis.attributes import constant_input, ints_attribute
from onnxopt.analysis.values import dims, rank
from onnxopt.rewriting import Refuse

__all__ = ["AxisSlice", "composed", "read_slices", "size_of_axis"]

#: Ends from here on mean the end of the axis, whatever its size: the specification of Slice
#: recommends INT_MAX for that, and exporters write it in 32 bits too.
_OPEN = 2**31 - 1
_LARGEST = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class AxisSlice:
    """``start:end:step`` along one axis, with numpy's meaning, which is Slice's."""

    start: int
    end: int
    step: int = 1

    @property
    def is_open(self) -> bool:
        """Whether it goes on to the end of the axis."""
        return self.end >= _OPEN

    def picked(self, size: int) -> range:
        """The indices it picks from an axis of a known size."""
        return range(*slice(self.start, self.end, self.step).indices(size))


def _from_range(picked: range, size: int) -> AxisSlice:
    """A slice that picks a range of indices from an axis of a known size."""
    if len(picked) == 0:
        return AxisSlice(0, 0)
    if picked.step > 0 or len(picked) == 1:
        return AxisSlice(picked[0], picked[-1] + 1, max(picked.step, 1))
    # An end of -1 would mean the last element; one before the first is -(size + 1).
    end = picked[-1] - 1
    return AxisSlice(picked[0], end if end >= 0 else -(size + 1), picked.step)


def composed(first: AxisSlice, second: AxisSlice, size: int | None) -> AxisSlice:
    """The slice that does what the first and then the second do.

    Args:
        first: Applied to the axis.
        second: Applied to what the first gives.
        size: Elements of the axis, or None when that is not known.

    Raises:
        Refuse: When it depends on a size that is not known.
    """
    if size is not None:
        return _from_range(first.picked(size)[slice(second.start, second.end, second.step)], size)
    if min(first.step, second.step) < 1 or min(first.start, second.start) < 0:
        raise Refuse("it depends on the size of the axis")
    # What is beyond 64 bits is beyond every axis.
    start = min(first.start + first.step * second.start, _LARGEST)
    step = min(first.step * second.step, _LARGEST)
    if second.is_open:
        return AxisSlice(start, first.end, step)
    if second.end >= 0:
        # Element k of the first result stands at first.start + k * first.step.
        end = first.start + first.step * second.end
        if first.is_open:
            return AxisSlice(start, min(end, _LARGEST), step)
        if first.end >= 0:
            return AxisSlice(start, min(end, first.end), step)
    elif first.step == 1:
        # Counted from the end of the first result, which is the end of the axis or counted from it.
        if first.is_open:
            return AxisSlice(start, second.end, step)
        if first.end < 0:
            return AxisSlice(start, max(first.end + second.end, -_LARGEST), step)
    raise Refuse("it depends on the size of the axis")


def read_slices(node: ir.Node, opset: int) -> dict[int, AxisSlice]:
    """What a Slice node does, by axis; axes are counted from the front.

    Raises:
        Refuse: When that is not known before the model runs.
    """
    if opset < 10:
        starts, ends = ints_attribute(node, "starts"), ints_attribute(node, "ends")
        axes, steps = ints_attribute(node, "axes"), None
    else:
        starts = constant_input(node, 1, "a start")
        ends = constant_input(node, 2, "an end")
        axes = constant_input(node, 3, "an axis")
        steps = constant_input(node, 4, "a step")
    if starts is None or ends is None or len(starts) != len(ends):
        raise Refuse("starts and ends do not fit")
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    if any(axis < 0 for axis in axes):
        width = rank(node.inputs[0])
        if width is None:
            raise Refuse("the rank is not known")
        axes = tuple(axis % width for axis in axes)
    if not len(axes) == len(steps) == len(starts) or len(set(axes)) < len(axes):
        raise Refuse("axes or steps do not fit")
    if any(step < 0 and end >= _OPEN for end, step in zip(ends, steps, strict=True)):
        # Empty by the text of the specification, all down to the first in ONNX Runtime.
        raise Refuse("what an open end means for a negative step is not agreed on")
    return {
        axis: AxisSlice(start, end, step)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    }


def size_of_axis(value: ir.Value | None, axis: int) -> int | None:
    """Elements along an axis, or None when that is not known."""
    sizes = dims(value)
    size = None if sizes is None or axis >= len(sizes) else sizes[axis]
    return size if isinstance(size, int) else None
