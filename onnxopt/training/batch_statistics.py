"""Which BatchNormalization nodes have statistics that a training may move.

Some normalize nothing: converters write a scale and a shift of channels as a BatchNormalization
with means of 0 and variances of 1, and equal tensors are often stored once, so that one of ones is
a scale here and a variance there. Statistics of a batch in place of such numbers would be another
model.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.op_traits import is_standard
from onnxopt.training.stored import stored

__all__ = ["follows_batches"]


def follows_batches(node: ir.Node) -> bool:
    """Whether a node is a BatchNormalization whose mean and variance are stored, are read by
    nothing else, and are not the same for all channels.
    """
    if node.op_type != "BatchNormalization" or not is_standard(node) or len(node.inputs) < 5:
        return False
    held = node.inputs[3:5]
    tensors = [stored(value) for value in held]
    if any(tensor is None for tensor in tensors):
        return False
    if any(value is None or len(value.uses()) != 1 or value.is_graph_output() for value in held):
        return False
    arrays = [np.asarray(tensor.numpy()) for tensor in tensors if tensor is not None]
    if arrays[0].size < 2:
        return True
    return any(bool((array != array.reshape(-1)[0]).any()) for array in arrays)
