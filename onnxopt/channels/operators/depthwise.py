"""What a depthwise convolution makes of constant channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import constant_array
from onnxopt.channels.known import Known, Transfer

__all__ = ["depthwise_transfer"]


def depthwise_transfer(node: ir.Node, many: int, uniform: bool) -> Transfer:
    """``c * sum(weights) + bias`` where no output sees padding, ``bias`` where c or weights are 0.

    Args:
        node: The convolution.
        many: Outputs of each input channel.
        uniform: Whether no output sees padding. Otherwise the border differs from the inside, and
            a channel that is not 0 is constant no more.
    """

    def transfer(known: Sequence[Known | None]) -> Known | None:
        weights = constant_array(node.inputs[1])
        assert weights is not None
        taps = weights.reshape(weights.shape[0], -1)
        dead = ~(taps != 0).any(axis=1)
        values = np.zeros(len(taps))
        if len(node.inputs) > 2 and (bias := constant_array(node.inputs[2])) is not None:
            values += bias.astype(np.float64)
        constant = dead
        dtype = weights.dtype
        if (given := known[0]) is not None:
            numbers = given.numbers.reshape(-1).repeat(many)
            kept = given.mask if uniform else given.mask & ~given.nonzero
            constant = dead | kept.reshape(-1).repeat(many)
            values += np.where(constant, numbers, 0.0) * taps.astype(np.float64).sum(axis=1)
        shape = (1, -1, *[1] * (weights.ndim - 2))
        with np.errstate(over="ignore"):
            return Known(constant.reshape(shape), values.astype(dtype).reshape(shape))

    return transfer
