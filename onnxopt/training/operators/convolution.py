"""Conv and ConvTranspose over one, two or three spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnxopt.analysis.values import rank as rank_of
from onnxopt.training.node_view import Builder, Call, NodeView
from onnxopt.training.operators.windows import Window

__all__ = ["BUILDERS", "convolution", "flat_padding"]

_CONV = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}
_TRANSPOSED = {
    3: torch.conv_transpose1d,
    4: torch.conv_transpose2d,
    5: torch.conv_transpose3d,
}


def _conv(node: NodeView) -> Call:
    function = convolution(node, rank_of(node.input(1)))
    return Call(function, (node.tensor(0), node.tensor(1), node.tensor(2)))


def convolution(node: NodeView, rank: int | None) -> Any:
    """The convolution of a node: a function of input, weights and bias (or None).

    Args:
        node: Where attributes are read.
        rank: Of the weights, when known.
    """
    node.require(rank is None or rank in _CONV, "a convolution over more than three axes")
    window, group = Window.of(node), node.int_attribute("group", 1)
    pads = window.pads or ()
    half = len(pads) // 2
    if rank is not None and window.auto_pad in ("NOTSET", "VALID") and pads[:half] == pads[half:]:
        conv = _CONV[rank]
        stride, dilation = window.stride(rank - 2), window.dilation(rank - 2)
        padding = pads[:half] if pads and window.auto_pad == "NOTSET" else (0,) * (rank - 2)

        def evenly(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return conv(x, weight, bias, stride, padding, dilation, group)

        return evenly

    def unevenly(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        axes = weight.ndim - 2
        both = window.padding(x.shape[2:], weight.shape[2:])
        if all(before == after for before, after in both):
            padding = tuple(before for before, _ in both)
        else:
            x, padding = functional.pad(x, flat_padding(both)), (0,) * axes
        stride, dilation = window.stride(axes), window.dilation(axes)
        return _CONV[weight.ndim](x, weight, bias, stride, padding, dilation, group)

    return unevenly


def flat_padding(both: Sequence[tuple[Any, Any]]) -> list[Any]:
    """Padding of the last axes as `torch.nn.functional.pad` takes it: the last axis first."""
    return [each for pair in reversed(both) for each in pair]


def _conv_transpose(node: NodeView) -> Call:
    """Without padding each input element adds a kernel to the output; then edges are cut.

    An output larger than that (``output_padding``) holds the bias there.
    """
    window, group = Window.of(node), node.int_attribute("group", 1)
    extra = node.ints_attribute("output_padding")
    wanted = node.ints_attribute("output_shape")

    def conv_transpose(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        axes = weight.ndim - 2
        stride, dilation = window.stride(axes), window.dilation(axes)
        added = extra or (0,) * axes
        conv = _TRANSPOSED[weight.ndim]
        pads = window.pads
        if wanted is None and window.auto_pad == "NOTSET":
            both = (
                [(0, 0)] * axes
                if pads is None
                else list(zip(pads[:axes], pads[axes:], strict=True))
            )
            even = all(before == after for before, after in both)
            if even and all(a < max(s, d) for a, s, d in zip(added, stride, dilation, strict=True)):
                padding = [before for before, _ in both]
                return conv(x, weight, bias, stride, padding, added, group, dilation)
        else:
            both = _distributed(x, weight, added, wanted)
        full = conv(x, weight, None, stride, 0, 0, group, dilation)
        cut = [(-before, more - after) for (before, after), more in zip(both, added, strict=True)]
        if wanted is not None:
            sizes = zip(wanted[-axes:], full.shape[2:], both, strict=True)
            cut = [(-before, size - (whole - before)) for size, whole, (before, _) in sizes]
        full = functional.pad(full, flat_padding(cut))
        return full if bias is None else full + bias.reshape(-1, *(1,) * axes)

    def _distributed(
        x: Tensor, weight: Tensor, added: Sequence[int], wanted: Sequence[int] | None
    ) -> list[tuple[Any, Any]]:
        axes = weight.ndim - 2
        stride, dilation = window.stride(axes), window.dilation(axes)
        sizes, kernel = x.shape[2:], weight.shape[2:]
        if window.auto_pad == "VALID" and wanted is None:
            return [(0, 0)] * axes
        if wanted is None:
            wanted = [size * step for size, step in zip(sizes, stride, strict=True)]
        both = []
        for axis in range(axes):
            full = (sizes[axis] - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1
            total = max(full + added[axis] - wanted[len(wanted) - axes + axis], 0)
            half = total // 2
            upper = window.auto_pad == "SAME_UPPER"
            both.append((half, total - half) if upper else (total - half, half))
        return both

    return Call(conv_transpose, (node.tensor(0), node.tensor(1), node.tensor(2)))


BUILDERS: dict[str, Builder] = {"Conv": _conv, "ConvTranspose": _conv_transpose}
