"""Pools: maxima, means and norms of windows, and of whole maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnxopt.training.node_view import Builder, Call, NodeView
from onnxopt.training.operators.convolution import flat_padding
from onnxopt.training.operators.windows import Window

__all__ = ["BUILDERS"]

_MAX: dict[int, Any] = {
    3: functional.max_pool1d,
    4: functional.max_pool2d,
    5: functional.max_pool3d,
}
_MEAN: dict[int, Any] = {
    3: functional.avg_pool1d,
    4: functional.avg_pool2d,
    5: functional.avg_pool3d,
}
_CONV: dict[int, Any] = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}


def _max_pool(node: NodeView) -> Call:
    kernel, window = node.ints_attribute("kernel_shape") or (), Window.of(node)
    ceil = bool(node.int_attribute("ceil_mode", 0))
    indices = node.outputs > 1
    node.ignore_attributes("storage_order")  # it is about indices
    node.require(
        not indices or not node.int_attribute("storage_order", 0), "indices in column-major order"
    )
    axes = len(kernel)
    stride, dilation = window.stride(axes), window.dilation(axes)

    def max_pool(x: Tensor) -> Any:
        both = window.padding(x.shape[2:], kernel)
        pool = _MAX[x.ndim]
        if _native(both, kernel) and (x.is_floating_point() or not any(map(any, both))):
            padding = [before for before, _ in both]
            result = pool(x, kernel, stride, padding, dilation, ceil, indices)
            return (result[0], _flat_indices(result[1], x)) if indices else result
        low = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        padded = functional.pad(x, flat_padding(_whole(x, both, kernel, window, ceil)), value=low)
        result = pool(padded, kernel, stride, 0, dilation, False, indices)
        if not indices:
            return result
        before = [pair[0] for pair in both]
        return result[0], _flat_indices(_unpadded(result[1], padded, x, before), x)

    return Call(max_pool, (node.tensor(0),))


def _native(both: Sequence[tuple[Any, Any]], kernel: Sequence[int]) -> bool:
    """Whether PyTorch can pad so: alike on both sides, by half of the kernel at most."""
    return all(
        before == after and before <= size // 2
        for (before, after), size in zip(both, kernel, strict=True)
    )


def _whole(
    x: Tensor, both: Sequence[tuple[Any, Any]], kernel: Sequence[int], window: Window, ceil: bool
) -> list[tuple[Any, Any]]:
    """Padding with which windows end where the last one does."""
    padding = []
    strides, dilations = window.stride(len(kernel)), window.dilation(len(kernel))
    for axis, (before, after) in enumerate(both):
        size, stride = x.shape[2 + axis], strides[axis]
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        room = size + before + after - extent
        count = (-(-room // stride) if ceil else room // stride) + 1
        if ceil and (count - 1) * stride >= size + before:
            count -= 1  # a window has to start before the padding at the end
        padding.append((before, (count - 1) * stride + extent - size - before))
    return padding


def _unpadded(indices: Tensor, padded: Tensor, x: Tensor, before: Sequence[int]) -> Tensor:
    """Indices into a map, from indices into the padded map."""
    flat = torch.zeros_like(indices)
    rest, step = indices, 1
    for axis in range(x.ndim - 1, 1, -1):
        flat = flat + (rest % padded.shape[axis] - before[axis - 2]) * step
        rest = rest // padded.shape[axis]
        step *= x.shape[axis]
    return flat


def _flat_indices(indices: Tensor, x: Tensor) -> Tensor:
    """Indices into the whole tensor, from indices into each map."""
    maps = torch.arange(x.shape[0] * x.shape[1], device=x.device) * math.prod(x.shape[2:])
    return indices + maps.reshape(x.shape[0], x.shape[1], *(1,) * (x.ndim - 2))


def _average_pool(node: NodeView) -> Call:
    kernel, window = node.ints_attribute("kernel_shape") or (), Window.of(node)
    ceil = bool(node.int_attribute("ceil_mode", 0))
    padding_counts = bool(node.int_attribute("count_include_pad", 0))
    axes = len(kernel)
    stride, dilation = window.stride(axes), window.dilation(axes)

    def average_pool(x: Tensor) -> Tensor:
        both = window.padding(x.shape[2:], kernel)
        if _native(both, kernel) and max(dilation) == 1:
            padding = [before for before, _ in both]
            return _MEAN[x.ndim](x, kernel, stride, padding, ceil, padding_counts)
        whole = _whole(x, both, kernel, window, ceil)
        counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
        if padding_counts:
            tail = [(0, full - after) for (_, after), (_, full) in zip(both, whole, strict=True)]
            counted = functional.pad(counted, flat_padding(both), value=1.0)
            counted = functional.pad(counted, flat_padding(tail))
        else:
            counted = functional.pad(counted, flat_padding(whole))
        total = _window_sums(functional.pad(x, flat_padding(whole)), kernel, stride, dilation)
        return total / _window_sums(counted, kernel, stride, dilation)

    return Call(average_pool, (node.tensor(0),))


def _window_sums(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    ones = torch.ones((1, 1, *kernel), dtype=x.dtype, device=x.device)
    maps = x.reshape(-1, 1, *x.shape[2:])
    sums = _CONV[x.ndim](maps, ones, None, stride, 0, dilation)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def _lp_pool(node: NodeView) -> Call:
    """The p-th root of the sum of p-th powers of magnitudes."""
    kernel, window = node.ints_attribute("kernel_shape") or (), Window.of(node)
    power, ceil = node.int_attribute("p", 2), bool(node.int_attribute("ceil_mode", 0))
    axes = len(kernel)
    stride, dilation = window.stride(axes), window.dilation(axes)

    def lp_pool(x: Tensor) -> Tensor:
        whole = _whole(x, window.padding(x.shape[2:], kernel), kernel, window, ceil)
        powers = functional.pad(x.abs() ** power, flat_padding(whole))
        return _window_sums(powers, kernel, stride, dilation) ** (1.0 / power)

    return Call(lp_pool, (node.tensor(0),))


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _global_average_pool(node: NodeView) -> Call:
    return Call(lambda x: torch.mean(x, _spatial(x), keepdim=True), (node.tensor(0),))


def _global_max_pool(node: NodeView) -> Call:
    return Call(lambda x: torch.amax(x, _spatial(x), keepdim=True), (node.tensor(0),))


def _global_lp_pool(node: NodeView) -> Call:
    power = node.int_attribute("p", 2)

    def global_lp_pool(x: Tensor) -> Tensor:
        return torch.sum(x.abs() ** power, _spatial(x), keepdim=True) ** (1.0 / power)

    return Call(global_lp_pool, (node.tensor(0),))


BUILDERS: dict[str, Builder] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "GlobalLpPool": _global_lp_pool,
    "GlobalMaxPool": _global_max_pool,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
}
