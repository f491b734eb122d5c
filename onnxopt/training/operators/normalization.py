"""Normalizations: by batch, layer, instance, group or length; softmax and kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnxopt.training.batch_statistics import follows_batches
from onnxopt.training.node_view import Builder, Call, NodeView

__all__ = ["BUILDERS"]

#: Since then softmax works along one axis; before, the input was seen as a matrix.
_SOFTMAX_ALONG_AXIS = 13
#: Since then scale and bias of GroupNormalization have one number a channel, not one a group.
_GROUP_SCALE_BY_CHANNEL = 21


def _batch_normalization(node: NodeView) -> Call:
    """gamma (x - mean) / sqrt(variance + epsilon) + beta, with the running mean and variance.

    When the module trains with batch statistics, those of the batch are taken and the running ones
    follow: running * momentum + batch * (1 - momentum); see `follows_batches` for where they do.
    """
    epsilon = node.float_attribute("epsilon", 1e-5)
    momentum = node.float_attribute("momentum", 0.9)
    node.require(node.int_attribute("spatial", 1) == 1, "statistics by position")
    if node.opset < 7:
        node.require(bool(node.int_attribute("is_test", 0)), "statistics of the batch")
        node.ignore_attributes("consumed_inputs")
    inputs = tuple(node.tensor(index) for index in range(5))
    if node.int_attribute("training_mode", 0):
        outputs = node.outputs

        def train(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Any:
            axes = [axis for axis in range(x.ndim) if axis != 1]
            y = functional.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
            if outputs == 1:
                return y
            of_batch, spread = x.mean(axes), x.var(axes, correction=0)
            follow = 1 - momentum
            return (
                y,
                mean * momentum + of_batch * follow,
                variance * momentum + spread * follow,
            )[:outputs]

        return Call(train, inputs)
    node.require(node.outputs == 1, "outputs of training")
    follow = 1 - momentum

    def normalize(
        x: Tensor,
        scale: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        training: bool = False,
    ) -> Tensor:
        return torch.batch_norm(x, scale, bias, mean, variance, training, follow, epsilon, False)

    return Call(normalize, (*inputs, node.training) if follows_batches(node.node) else inputs)


def _layer_normalization(node: NodeView) -> Call:
    """scale (x - mean) / sqrt(variance + epsilon) + bias over the axes from ``axis`` on."""
    axis, epsilon = node.int_attribute("axis", -1), node.float_attribute("epsilon", 1e-5)
    node.ignore_attributes("stash_type")
    outputs = node.outputs

    def layer_normalization(x: Tensor, scale: Tensor | None, bias: Tensor | None) -> Any:
        shape = x.shape[axis:]
        fits = (scale is None or scale.shape == shape) and (bias is None or bias.shape == shape)
        if fits:
            y = functional.layer_norm(x, shape, scale, bias, epsilon)
        else:
            y = functional.layer_norm(x, shape, None, None, epsilon)
            y = y if scale is None else y * scale
            y = y if bias is None else y + bias
        if outputs == 1:
            return y
        axes = tuple(range(axis % x.ndim, x.ndim))
        mean = x.mean(axes, keepdim=True)
        deviation = torch.rsqrt(x.var(axes, correction=0, keepdim=True) + epsilon)
        return (y, mean, deviation)[:outputs]

    return Call(layer_normalization, (node.tensor(0), node.tensor(1), node.tensor(2)))


def _rms_normalization(node: NodeView) -> Call:
    """scale x / sqrt(mean(x^2) + epsilon) over the axes from ``axis`` on."""
    axis, epsilon = node.int_attribute("axis", -1), node.float_attribute("epsilon", 1e-5)
    node.ignore_attributes("stash_type")

    def rms_normalization(x: Tensor, scale: Tensor) -> Tensor:
        axes = tuple(range(axis % x.ndim, x.ndim))
        return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale

    return Call(rms_normalization, (node.tensor(0), node.tensor(1)))


def _instance_normalization(node: NodeView) -> Call:
    epsilon = node.float_attribute("epsilon", 1e-5)

    def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return functional.group_norm(x, x.shape[1], scale, bias, epsilon)

    return Call(instance_normalization, (node.tensor(0), node.tensor(1), node.tensor(2)))


def _group_normalization(node: NodeView) -> Call:
    groups = node.int_attribute("num_groups", 1)
    epsilon = node.float_attribute("epsilon", 1e-5)
    node.ignore_attributes("stash_type")
    by_channel = node.opset >= _GROUP_SCALE_BY_CHANNEL

    def group_normalization(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if not by_channel:
            repeats = x.shape[1] // groups
            scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
        return functional.group_norm(x, groups, scale, bias, epsilon)

    return Call(group_normalization, (node.tensor(0), node.tensor(1), node.tensor(2)))


def _mean_variance_normalization(node: NodeView) -> Call:
    axes = node.ints_attribute("axes") or (0, 2, 3)

    def normalize(x: Tensor) -> Tensor:
        deviation = x.var(axes, correction=0, keepdim=True).sqrt()
        return (x - x.mean(axes, keepdim=True)) / (deviation + 1e-9)

    return Call(normalize, (node.tensor(0),))


def _lp_normalization(node: NodeView) -> Call:
    axis, power = node.int_attribute("axis", -1), node.int_attribute("p", 2)

    def normalize(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, power, axis, keepdim=True)
        return torch.where(length == 0, torch.zeros_like(x), x / length)

    return Call(normalize, (node.tensor(0),))


def _local_response_normalization(node: NodeView) -> Call:
    """x / (bias + alpha / size * sum of squares of ``size`` channels around) ^ beta."""
    size = node.int_attribute("size", 1)
    alpha, beta = node.float_attribute("alpha", 1e-4), node.float_attribute("beta", 0.75)
    bias = node.float_attribute("bias", 1.0)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2

    def normalize(x: Tensor) -> Tensor:
        squares = x.square().reshape(x.shape[0], 1, x.shape[1], -1)
        squares = functional.pad(squares, (0, 0, before, after))
        means = functional.avg_pool2d(squares, (size, 1), stride=1)
        return x / (bias + alpha * means.reshape(x.shape)) ** beta

    return Call(normalize, (node.tensor(0),))


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Builder:
    def build(node: NodeView) -> Call:
        if node.opset >= _SOFTMAX_ALONG_AXIS:
            axis = node.int_attribute("axis", -1)
            return Call(lambda x: function(x, axis), (node.tensor(0),))
        first = node.int_attribute("axis", 1)

        def as_matrix(x: Tensor) -> Tensor:
            axis = first % x.ndim if x.ndim else 0
            if axis == x.ndim - 1:
                return function(x, axis)
            return function(x.flatten(axis), -1).reshape(x.shape)

        return Call(as_matrix, (node.tensor(0),))

    return build


def _hardmax(x: Tensor, axis: int) -> Tensor:
    first = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1.0)


BUILDERS: dict[str, Builder] = {
    "BatchNormalization": _batch_normalization,
    "GroupNormalization": _group_normalization,
    "Hardmax": _softmax(_hardmax),
    "InstanceNormalization": _instance_normalization,
    "LRN": _local_response_normalization,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _softmax(torch.log_softmax),
    "LpNormalization": _lp_normalization,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "RMSNormalization": _rms_normalization,
    "Softmax": _softmax(torch.softmax),
}
