"""Scales of integer biases that follow those of the input and the weights.

A convolution or product in integers adds its int32 bias to sums whose step is the input's times
the weights'. ONNX Runtime's integer kernels take for granted that the bias has that very scale,
whatever its DequantizeLinear says; so where the others were trained, this one has to follow.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.op_traits import is_standard
from onnxopt.training.stored import stored
from onnxopt.traversal import all_nodes

__all__ = ["following_scales"]


def following_scales(graph: ir.Graph) -> Iterator[tuple[ir.Value, NDArray[np.float32]]]:
    """Scales of int32 biases that differ from the product of the others, with what they have to be.

    Only where the bias scale is read by nothing else, and has the product's shape.
    """
    for node in all_nodes(graph):
        if node.op_type not in ("Conv", "Gemm") or not is_standard(node) or len(node.inputs) < 3:
            continue
        scales = [_scale(value) for value in node.inputs[:3]]
        makers = [None if value is None else value.producer() for value in node.inputs]
        bias = makers[2]
        if bias is None or any(scale is None for scale in scales):
            continue
        quantized = stored(bias.inputs[0])
        if quantized is None or quantized.dtype != ir.DataType.INT32:
            continue
        of_input, of_weight, of_bias = (scale for scale in scales if scale is not None)
        product = (of_input.reshape(()) * of_weight.reshape(-1)).astype(np.float32)
        value = bias.inputs[1]
        if value is None or len(value.uses()) != 1 or product.size != of_bias.size:
            continue
        product = product.reshape(of_bias.shape)
        if product.tobytes() != of_bias.tobytes():
            yield value, product


def _scale(value: ir.Value | None) -> NDArray[np.float32] | None:
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or not is_standard(node):
        return None
    scale = stored(node.inputs[1])
    return None if scale is None else np.asarray(scale.numpy())
