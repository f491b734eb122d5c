"""Run decoders in ONNX Runtime, in its child process, without its optimizations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.runtime.worker import shared_worker

from ..fold_constants.region_proto import region_proto

__all__ = ["decode"]

#: Smaller parts are put into the message, larger ones are fed.
_INITIALIZER_BYTES = 1 << 12
#: Decoding is a few passes over the numbers; what takes longer hangs.
_SECONDS = 120.0


def decode(
    nodes: Sequence[ir.Node],
    parts: Mapping[ir.Value, ir.TensorProtocol],
    output: ir.Value,
    opset: int,
    ir_version: int,
) -> np.ndarray:
    """What a decoder makes of its parts.

    Args:
        nodes: Its nodes in topological order.
        parts: The constants that they read.
        output: What the last node makes.
        opset: Version of the standard domain.
        ir_version: IR version of the model.

    Raises:
        RuntimeRefusalError: When the runtime has no kernel for one of the nodes.
        RuntimeCrashError: When it dies or hangs.
    """
    region = region_proto(nodes, parts, opset, ir_version, _INITIALIZER_BYTES, [output])
    feeds = {name: parts[value].numpy() for name, value in region.fed.items()}
    (array,) = shared_worker().evaluate(region.proto.SerializeToString(), feeds, _SECONDS)
    return np.asarray(array)
