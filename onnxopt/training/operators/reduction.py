"""Reductions along axes, running sums, and positions of extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onnxopt.training.node_view import Builder, Call, NodeView
from onnxopt.training.numbers import Host, integers

__all__ = ["BUILDERS"]

#: Reduces a tensor along axes: (tensor, axes, keep them as 1).
Reduce = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _reduce(function: Reduce, map_alone: Callable[[Tensor], Tensor] | None = None) -> Builder:
    """A reduction.

    Args:
        function: Reduces along axes.
        map_alone: What it does along no axes at all, where that is more than nothing.
    """

    def build(node: NodeView) -> Call:
        keep = bool(node.int_attribute("keepdims", 1))
        nothing = bool(node.int_attribute("noop_with_empty_axes", 0))

        def reduce(x: Tensor, axes: tuple[int, ...]) -> Tensor:
            if not axes:
                if nothing:
                    return x if map_alone is None else map_alone(x)
                axes = tuple(range(x.ndim))
            return function(x, axes, keep) if axes else (map_alone or _same)(x)

        if node.input(1) is None or node.constant(1) is not None:
            known = node.axes() or ()
            return Call(lambda x: reduce(x, known), (node.tensor(0),))

        def computed(x: Tensor, axes: Host) -> Tensor:
            return reduce(x, tuple(integers(axes)))

        return Call(computed, (node.tensor(0), node.host(1)))

    return build


def _same(x: Tensor) -> Tensor:
    return x


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keepdim=keep)
    count = x.numel() // max(_sum(torch.ones_like(x), axes, keep).numel(), 1)
    return torch.div(_sum(x, axes, keep), max(count, 1), rounding_mode="trunc")


def _amax(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if any(x.shape[axis] == 0 for axis in axes):
        return _of_nothing(x, axes, keep, highest=False)
    return torch.amax(x, axes, keepdim=keep)


def _amin(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if any(x.shape[axis] == 0 for axis in axes):
        return _of_nothing(x, axes, keep, highest=True)
    return torch.amin(x, axes, keepdim=keep)


def _of_nothing(x: Tensor, axes: tuple[int, ...], keep: bool, highest: bool) -> Tensor:
    """The extreme of no elements: the other end of the type."""
    if x.is_floating_point():
        end: Any = math.inf if highest else -math.inf
    elif x.dtype == torch.bool:
        end = highest
    else:
        limits = torch.iinfo(x.dtype)
        end = limits.max if highest else limits.min
    return torch.full_like(torch.sum(x, axes, keepdim=keep), end, dtype=x.dtype)


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


def _l1(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _l2(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.linalg.vector_norm(x, 2, axes, keepdim=keep)
    return _sum(x * x, axes, keep).double().sqrt().to(x.dtype)


def _sum_square(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep)


def _log_sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.log(_sum(x, axes, keep))


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keepdim=keep)


def _extreme(highest: bool) -> Builder:
    """ArgMax or ArgMin: the first place of the extreme, or the last."""

    def build(node: NodeView) -> Call:
        axis, keep = node.int_attribute("axis", 0), bool(node.int_attribute("keepdims", 1))
        last = bool(node.int_attribute("select_last_index", 0))
        find = torch.argmax if highest else torch.argmin

        def extreme(x: Tensor) -> Tensor:
            if not last:
                return find(x, axis, keepdim=keep)
            return x.shape[axis] - 1 - find(x.flip(axis), axis, keepdim=keep)

        return Call(extreme, (node.tensor(0),))

    return build


def _cumulative(function: Callable[..., Any], neutral: int) -> Builder:
    def build(node: NodeView) -> Call:
        exclusive = bool(node.int_attribute("exclusive", 0))
        backward = bool(node.int_attribute("reverse", 0))

        def cumulate(x: Tensor, axis_of: Host) -> Tensor:
            (axis,) = integers(axis_of)
            x = x.flip(axis) if backward else x
            y = function(x, axis, dtype=x.dtype)
            if exclusive:
                first = torch.full_like(y.narrow(axis, 0, 1), neutral)
                y = torch.cat([first, y.narrow(axis, 0, y.shape[axis] - 1)], axis)
            return y.flip(axis) if backward else y

        return Call(cumulate, (node.tensor(0), node.host(1)))

    return build


def _top_k(node: NodeView) -> Call:
    axis = node.int_attribute("axis", -1)
    largest = bool(node.int_attribute("largest", 1))
    node.ignore_attributes("sorted")  # sorted is one of the orders that it allows
    fixed = node.int_attribute("k", 0) if node.has_attribute("k") else None

    def top_k(x: Tensor, count: Any) -> Any:
        # Of equal elements the first comes first, which torch.topk does not promise.
        values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, count), places.narrow(axis, 0, count)

    if fixed is not None:
        return Call(lambda x: top_k(x, fixed), (node.tensor(0),))
    return Call(lambda x, count: top_k(x, integers(count)[0]), (node.tensor(0), node.host(1)))


BUILDERS: dict[str, Builder] = {
    "ArgMax": _extreme(highest=True),
    "ArgMin": _extreme(highest=False),
    "CumProd": _cumulative(torch.cumprod, 1),
    "CumSum": _cumulative(torch.cumsum, 0),
    "ReduceL1": _reduce(_l1, torch.abs),
    "ReduceL2": _reduce(_l2, torch.abs),
    "ReduceLogSum": _reduce(_log_sum, torch.log),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(_amax),
    "ReduceMean": _reduce(_mean),
    "ReduceMin": _reduce(_amin),
    "ReduceProd": _reduce(_prod),
    "ReduceSum": _reduce(_sum),
    "ReduceSumSquare": _reduce(_sum_square, torch.square),
    "TopK": _top_k,
}
