"""Run decoders in ONNX Runtime, without its optimizations, and say how much memory they take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.runtime.worker import shared_worker

from ..fold_constants.region_proto import region_proto
from .builder import Decoder

__all__ = ["decode", "temporary_bytes"]

#: Smaller parts are put into the message, larger ones are fed.
_INITIALIZER_BYTES = 1 << 12
#: Decoding is a few passes over the numbers; what takes longer hangs.
_SECONDS = 120.0


def decode(
    nodes: Sequence[ir.Node],
    parts: Mapping[ir.Value, ir.TensorProtocol],
    outputs: Sequence[ir.Value],
    opset: int,
    ir_version: int,
) -> list[np.ndarray]:
    """What a decoder makes of its parts.

    Args:
        nodes: Its nodes in topological order.
        parts: The constants that they read.
        outputs: What is asked for of all that the nodes make.
        opset: Version of the standard domain.
        ir_version: IR version of the model.

    Raises:
        RuntimeRefusalError: When the runtime has no kernel for one of the nodes.
        RuntimeCrashError: When it dies or hangs.
    """
    region = region_proto(nodes, parts, opset, ir_version, _INITIALIZER_BYTES, outputs)
    feeds = {name: parts[value].numpy() for name, value in region.fed.items()}
    arrays = shared_worker().evaluate(region.proto.SerializeToString(), feeds, _SECONDS)
    return [np.asarray(array) for array in arrays]


def temporary_bytes(decoder: Decoder, opset: int, ir_version: int) -> int:
    """Bytes of everything that the nodes of a decoder make.

    The runtime holds all of it at once, since it folds a whole model before it lets anything go.
    """
    region = region_proto(
        decoder.nodes, decoder.tensors, opset, ir_version, _INITIALIZER_BYTES, decoder.outputs
    )
    graph = onnx.shape_inference.infer_shapes(region.proto, data_prop=True).graph
    return sum(_nbytes(value.type.tensor_type) for value in (*graph.value_info, *graph.output))


def _nbytes(tensor: onnx.TypeProto.Tensor) -> int:
    elements = math.prod(int(dim.dim_value) for dim in tensor.shape.dim)
    return elements * ir.DataType(tensor.elem_type).bitwidth // 8
