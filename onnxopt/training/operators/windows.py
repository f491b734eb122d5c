"""Padding of sliding windows, as convolutions and pools share it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from onnxopt.training.node_view import NodeView

__all__ = ["Window"]


@dataclasses.dataclass(frozen=True)
class Window:
    """How a window slides over the spatial axes.

    Attributes:
        strides: Steps by axis; None for 1 everywhere.
        dilations: Distances of taps by axis; None for 1 everywhere.
        pads: Padding before each axis, then after each; None for none.
        auto_pad: NOTSET, VALID, SAME_UPPER or SAME_LOWER.
    """

    strides: tuple[int, ...] | None
    dilations: tuple[int, ...] | None
    pads: tuple[int, ...] | None
    auto_pad: str

    @classmethod
    def of(cls, node: NodeView) -> Window:
        """The window of a node."""
        node.ignore_attributes("kernel_shape")  # weights have it, or a pool has read it
        return cls(
            node.ints_attribute("strides"),
            node.ints_attribute("dilations"),
            node.ints_attribute("pads"),
            node.string_attribute("auto_pad", "NOTSET"),
        )

    def stride(self, rank: int) -> tuple[int, ...]:
        """Strides by axis."""
        return self.strides or (1,) * rank

    def dilation(self, rank: int) -> tuple[int, ...]:
        """Dilations by axis."""
        return self.dilations or (1,) * rank

    def padding(self, sizes: Sequence[Any], kernel: Sequence[int]) -> list[tuple[Any, Any]]:
        """Padding before and after each axis.

        Args:
            sizes: Spatial sizes of the input.
            kernel: Sizes of the window.
        """
        rank = len(kernel)
        if self.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            return [
                self._same(*each)
                for each in zip(sizes, kernel, self.stride(rank), self.dilation(rank), strict=True)
            ]
        if self.pads is None or self.auto_pad == "VALID":
            return [(0, 0)] * rank
        return list(zip(self.pads[:rank], self.pads[rank:], strict=True))

    def _same(self, size: Any, kernel: int, stride: int, dilation: int) -> tuple[Any, Any]:
        """The output has size / stride elements, rounded up; an odd padding leans to one side."""
        count = -(-size // stride)
        total = (count - 1) * stride + (kernel - 1) * dilation + 1 - size
        total = total if total > 0 else 0
        half = total // 2
        return (half, total - half) if self.auto_pad == "SAME_UPPER" else (total - half, half)
