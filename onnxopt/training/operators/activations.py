"""Functions of one tensor, each element by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxopt.training.node_view import Builder, Call, NodeView

__all__ = ["BUILDERS"]


def _plain(function: Callable[..., Any], in_place: Callable[..., Any] | None = None) -> Builder:
    """The builder of an operator without attributes."""

    def build(node: NodeView) -> Call:
        return Call(function, (node.tensor(0),), in_place)

    return build


def _elu(node: NodeView) -> Call:
    alpha = node.float_attribute("alpha", 1.0)
    return Call(lambda x: functional.elu(x, alpha), (node.tensor(0),))


def _celu(node: NodeView) -> Call:
    alpha = node.float_attribute("alpha", 1.0)
    return Call(lambda x: functional.celu(x, alpha), (node.tensor(0),))


def _selu(node: NodeView) -> Call:
    """The defaults of ONNX are those of PyTorch in single precision; others are elu, scaled."""
    alpha = node.float_attribute("alpha", 1.67326319217681884765625)
    gamma = node.float_attribute("gamma", 1.05070102214813232421875)
    return Call(lambda x: gamma * functional.elu(x, alpha), (node.tensor(0),))


def _leaky_relu(node: NodeView) -> Call:
    slope = node.float_attribute("alpha", 0.01)
    in_place = (lambda x: functional.leaky_relu_(x, slope)) if slope > 0 else None
    return Call(lambda x: functional.leaky_relu(x, slope), (node.tensor(0),), in_place)


def _thresholded_relu(node: NodeView) -> Call:
    threshold = node.float_attribute("alpha", 1.0)
    return Call(lambda x: functional.threshold(x, threshold, 0.0), (node.tensor(0),))


def _hard_sigmoid(node: NodeView) -> Call:
    """max(0, min(1, alpha x + beta))."""
    alpha, beta = node.float_attribute("alpha", 0.2), node.float_attribute("beta", 0.5)

    def hard_sigmoid(x: Tensor) -> Tensor:
        return functional.hardtanh_(x * alpha + beta, 0.0, 1.0)

    return Call(hard_sigmoid, (node.tensor(0),))


def _gelu(node: NodeView) -> Call:
    approximate = node.string_attribute("approximate", "none")
    return Call(lambda x: functional.gelu(x, approximate=approximate), (node.tensor(0),))


def _swish(node: NodeView) -> Call:
    """x sigmoid(alpha x)."""
    alpha = node.float_attribute("alpha", 1.0)
    if alpha == 1.0:
        return Call(functional.silu, (node.tensor(0),))
    return Call(lambda x: x * torch.sigmoid(alpha * x), (node.tensor(0),))


def _shrink(node: NodeView) -> Call:
    bias, threshold = node.float_attribute("bias", 0.0), node.float_attribute("lambd", 0.5)

    def shrink(x: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        low = torch.where(x < -threshold, x + bias, zero)
        return torch.where(x > threshold, x - bias, low).to(x.dtype)

    return Call(shrink, (node.tensor(0),))


def _prelu(node: NodeView) -> Call:
    """max(0, x) + slope min(0, x); the slope is broadcast as numpy does, once by channel."""
    by_channel = node.opset < 7

    def prelu(x: Tensor, slope: Tensor) -> Tensor:
        if by_channel:
            slope = slope.reshape(-1, *(1,) * (x.ndim - 2))
        return torch.where(x < 0, x * slope, x)

    return Call(prelu, (node.tensor(0), node.tensor(1)))


def _clip(node: NodeView) -> Call:
    bounds = [node.float_attribute(name, default) for name, default in _OLD_BOUNDS]
    if node.has_attribute("min") or node.has_attribute("max") or node.opset < 11:
        return _clip_to(node, bounds[0], bounds[1])
    low, high = node.number(1), node.number(2)
    known = all(
        node.input(index) is None or number is not None for index, number in ((1, low), (2, high))
    )
    if known:
        return _clip_to(node, low, high)

    def clip(x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
        x = x if low is None else torch.maximum(x, low)
        return x if high is None else torch.minimum(x, high)

    return Call(clip, (node.tensor(0), node.tensor(1), node.tensor(2)))


_OLD_BOUNDS = (
    ("min", float(np.finfo(np.float32).min)),
    ("max", float(np.finfo(np.float32).max)),
)


def _clip_to(node: NodeView, low: float | None, high: float | None) -> Call:
    """Clip to known bounds. hardtanh and relu have faster gradients than clamp."""
    operands = (node.tensor(0),)
    if low is None and high is None:
        return Call(lambda x: x, operands)
    if isinstance(low, float) and isinstance(high, float) and low < high:
        return Call(
            lambda x: functional.hardtanh(x, low, high),
            operands,
            lambda x: functional.hardtanh_(x, low, high),
        )
    if isinstance(low, float) and low == 0.0 and high is None:
        return Call(torch.relu, operands, torch.relu_)
    return Call(lambda x: torch.clamp(x, low, high), operands)


def _is_inf(node: NodeView) -> Call:
    positive = bool(node.int_attribute("detect_positive", 1))
    negative = bool(node.int_attribute("detect_negative", 1))

    def is_inf(x: Tensor) -> Tensor:
        infinite = torch.isinf(x)
        if not positive:
            infinite = infinite & (x < 0)
        return infinite if negative else infinite & (x > 0)

    return Call(is_inf, (node.tensor(0),))


BUILDERS: dict[str, Builder] = {
    "Abs": _plain(torch.abs),
    "Acos": _plain(torch.acos),
    "Acosh": _plain(torch.acosh),
    "Asin": _plain(torch.asin),
    "Asinh": _plain(torch.asinh),
    "Atan": _plain(torch.atan),
    "Atanh": _plain(torch.atanh),
    "Ceil": _plain(torch.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": _plain(torch.cos),
    "Cosh": _plain(torch.cosh),
    "Elu": _elu,
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Floor": _plain(torch.floor),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(functional.hardswish),
    "IsInf": _is_inf,
    "IsNaN": _plain(torch.isnan),
    "LeakyRelu": _leaky_relu,
    "Log": _plain(torch.log),
    "Mish": _plain(functional.mish),
    "Neg": _plain(torch.neg),
    "PRelu": _prelu,
    "Reciprocal": _plain(torch.reciprocal),
    "Relu": _plain(torch.relu, torch.relu_),
    "Round": _plain(torch.round),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _plain(torch.sigmoid, torch.sigmoid_),
    "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin),
    "Sinh": _plain(torch.sinh),
    "Softplus": _plain(lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    "Softsign": _plain(functional.softsign),
    "Sqrt": _plain(torch.sqrt),
    "Swish": _swish,
    "Tan": _plain(torch.tan),
    "Tanh": _plain(torch.tanh, torch.tanh_),
    "ThresholdedRelu": _thresholded_relu,
}
