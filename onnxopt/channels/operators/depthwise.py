"""What a depthwise convolution makes of constant channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import ints_attribute, string_attribute
from onnxopt.channels.borders import Window, windows
from onnxopt.channels.known import Known, Transfer
from onnxopt.channels.parameters import Parameter

__all__ = ["border_places", "depthwise_transfer"]


def border_places(
    node: ir.Node, window: Sequence[int], sizes: Sequence[int | None]
) -> tuple[tuple[Window, ...], ...] | None:
    """The kinds of places of a padded convolution; None when it cannot be said.

    Args:
        node: The convolution.
        window: Its taps along each axis.
        sizes: Of the input along these axes, None where they are not known.
    """
    rank = len(window)
    strides = ints_attribute(node, "strides") or (1,) * rank
    dilations = ints_attribute(node, "dilations") or (1,) * rank
    pads = ints_attribute(node, "pads") or (0,) * (2 * rank)
    if not len(strides) == len(dilations) == len(sizes) == rank or len(pads) != 2 * rank:
        return None
    if min(pads) < 0:
        return None
    auto = string_attribute(node, "auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        # At most the window but for one tap is padded in all, half of it at each end.
        halves = [-(-(taps - 1) * each // 2) for taps, each in zip(window, dilations, strict=True)]
        pads, sizes = (*halves, *halves), (None,) * rank
    elif auto == "VALID":
        pads = (0,) * (2 * rank)
    return tuple(
        windows(sizes[axis], window[axis], (pads[axis], pads[axis + rank]), stride, dilation)
        for axis, (stride, dilation) in enumerate(zip(strides, dilations, strict=True))
    )


def depthwise_transfer(
    weights: Parameter, bias: Parameter | None, many: int, uniform: bool, wide: bool = False
) -> Transfer:
    """``c * sum(weights) + bias`` where no output sees padding, ``bias`` where c or weights are 0.

    Args:
        weights: The weights of the convolution.
        bias: Its bias.
        many: Outputs of each input channel.
        uniform: Whether no output sees padding. Otherwise the border differs from the inside, and
            a channel that is not 0 is constant no more.
        wide: Whether to give doubles, of which sums of integers can be read off.
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
        kind = weights.stored.dtype
        dtype = np.dtype(np.float64 if wide else np.float32 if weights.is_quantized else kind)
        with np.errstate(over="ignore"):
            return Known(constant.reshape(shape), values.astype(dtype).reshape(shape))

    return transfer
