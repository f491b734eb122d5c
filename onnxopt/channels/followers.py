"""What in a graph has to change when channels are removed.

The trace notes these down; whoever removes channels carries them out.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

__all__ = [
    "AxisRef",
    "Follower",
    "GatherIndices",
    "GroupCount",
    "HiddenSize",
    "Operand",
    "SizeInput",
    "SliceBounds",
    "SplitSizes",
]


@dataclasses.dataclass(frozen=True)
class AxisRef:
    """An axis of a value, with channels along it."""

    value: ir.Value
    axis: int


@dataclasses.dataclass(frozen=True)
class Operand:
    """A constant input of a node with one slice for each channel, along ``axis``.

    The gates of recurrent layers have one each: then the channels are there ``repeats`` times.
    """

    node: ir.Node
    index: int
    axis: int
    channels: AxisRef
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class SizeInput:
    """An element of a constant input that is the number of channels (a target of Reshape)."""

    node: ir.Node
    index: int
    position: int
    channels: AxisRef


@dataclasses.dataclass(frozen=True)
class GroupCount:
    """The ``group`` of a depthwise convolution, which is the number of its input's channels."""

    node: ir.Node
    channels: AxisRef


@dataclasses.dataclass(frozen=True)
class HiddenSize:
    """The ``hidden_size`` of a recurrent layer, which is the number of its units."""

    node: ir.Node
    channels: AxisRef


@dataclasses.dataclass(frozen=True)
class SplitSizes:
    """The sizes of the parts of a Split along channels; ``axis`` counts from the front."""

    node: ir.Node
    axis: int
    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SliceBounds:
    """Start and end of a Slice along channels.

    Attributes:
        node: The Slice.
        position: Where in its vectors of starts and ends the axis stands.
        start: First channel that is taken.
        end: The channel after the last one.
        channels: The axis of the input.
    """

    node: ir.Node
    position: int
    start: int
    end: int
    channels: AxisRef


@dataclasses.dataclass(frozen=True)
class GatherIndices:
    """The constant indices of a Gather along channels.

    Attributes:
        node: The Gather.
        channels: The axis of the input.
    """

    node: ir.Node
    channels: AxisRef


Follower = Operand | SizeInput | GroupCount | HiddenSize | SplitSizes | SliceBounds | GatherIndices
