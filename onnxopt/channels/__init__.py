"""Which channels of a graph belong together, what is the same in every run, and what nobody reads.

Nothing in here changes a model. `trace` follows each channel from the layer that makes it to those
that read it; `known_channels` says which are constant; `Reads` says which are read.
"""

from __future__ import annotations

from onnxopt.channels.atoms import Atoms, Pin
from onnxopt.channels.borders import Profiles
from onnxopt.channels.cells import Cell
from onnxopt.channels.constants import known_channels
from onnxopt.channels.followers import (
    AxisRef,
    Follower,
    GatherIndices,
    GroupCount,
    HiddenSize,
    Operand,
    SizeInput,
    SliceBounds,
    SplitSizes,
)
from onnxopt.channels.groups import ChannelGroup, channel_groups
from onnxopt.channels.known import Known
from onnxopt.channels.layers import Layer
from onnxopt.channels.pairings import Contraction, Mixture, Pairing
from onnxopt.channels.parameters import Parameter, scalar_scale
from onnxopt.channels.reads import Reads
from onnxopt.channels.sources import may_be_pruned
from onnxopt.channels.trace import trace
from onnxopt.channels.tracer import Trace

__all__ = [
    "Atoms",
    "AxisRef",
    "Cell",
    "ChannelGroup",
    "Contraction",
    "Follower",
    "GatherIndices",
    "GroupCount",
    "HiddenSize",
    "Known",
    "Layer",
    "Mixture",
    "Operand",
    "Pairing",
    "Parameter",
    "Pin",
    "Profiles",
    "Reads",
    "SizeInput",
    "SliceBounds",
    "SplitSizes",
    "Trace",
    "channel_groups",
    "known_channels",
    "may_be_pruned",
    "scalar_scale",
    "trace",
]
