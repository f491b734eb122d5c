"""What a depthwise convolution makes of constant channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt.channels.known import Known, Transfer
from onnxopt.channels.parameters import Parameter

__all__ = ["depthwise_transfer"]


def depthwise_transfer(
    weights: Parameter, bias: Parameter | None, many: int, uniform: bool
) -> Transfer:
    """``c * sum(weights) + bias`` where no output sees padding, ``bias`` where c or weights are 0.

    Args:
        weights: The weights of the convolution.
        bias: Its bias.
        many: Outputs of each input channel.
        uniform: Whether no output sees padding. Otherwise the border differs from the inside, and
            a channel that is not 0 is constant no more.
    """

    def transfer(known: Sequence[Known | None]) -> Known | None:
        numbers = weights.numbers
        taps = numbers.reshape(len(numbers), -1)
        dead = ~(taps != 0).any(axis=1)
        values = np.zeros(len(taps)) if bias is None else np.array(bias.numbers)
        constant = dead
        if (given := known[0]) is not None:
            inputs = given.numbers.reshape(-1).repeat(many)
            kept = given.mask if uniform else given.mask & ~given.nonzero
            constant = dead | kept.reshape(-1).repeat(many)
            values += np.where(constant, inputs, 0.0) * taps.sum(axis=1)
        shape = (1, -1, *[1] * (numbers.ndim - 2))
        dtype = np.dtype(np.float32) if weights.is_quantized else weights.stored.dtype
        with np.errstate(over="ignore"):
            return Known(constant.reshape(shape), values.astype(dtype).reshape(shape))

    return transfer
