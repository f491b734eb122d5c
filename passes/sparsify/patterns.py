"""Which weights may be zero together: any, N of M neighbours, or whole blocks."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

import numpy as np

from onnxopt.rewriting import Refuse

from .layers import Layout

__all__ = ["Pattern", "parse_pattern"]

Array = np.ndarray[Any, Any]

_N_OF_M = re.compile(r"(\d+):(\d+)")
_BLOCK = re.compile(r"(\d+)x(\d+)")


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A pattern of zeros.

    Attributes:
        kind: ``unstructured``; ``n:m``, where of each ``m`` neighbouring inputs of an output ``n``
            keep their weights; or ``block``, where ``n`` outputs times ``m`` inputs go together.
        n: See there.
        m: See there.
    """

    kind: Literal["unstructured", "n:m", "block"] = "unstructured"
    n: int = 1
    m: int = 1

    @property
    def ratio(self) -> float | None:
        """The share of zeros that the pattern itself fixes, if it does."""
        return 1 - self.n / self.m if self.kind == "n:m" else None

    def check(self, layout: Layout) -> None:
        """Raise `Refuse` where a weight does not fit the pattern."""
        if self.kind == "n:m" and layout.natural[0] % self.m:
            raise Refuse(f"its inputs are no multiple of {self.m}")

    def keep(self, scores: Array, layout: Layout, ratio: float, *, by_row: bool = False) -> Array:
        """Keep the best.

        Args:
            scores: How much each weight matters, from 0, as ``[groups, rows, columns]``.
            layout: Of the weight.
            ratio: Share of weights to drop; ``n:m`` fixes its own.
            by_row: Drop this share of each row instead of the whole weight.

        Returns:
            What stays, as booleans. At least one weight does.
        """
        if self.kind == "n:m":
            return _best_of_each(scores.reshape(*scores.shape[:2], -1, self.m), self.n).reshape(
                scores.shape
            )
        if self.kind == "block":
            ids = self.blocks(layout, scores.shape)
            sizes = np.bincount(ids.reshape(-1))
            means = np.bincount(ids.reshape(-1), scores.reshape(-1)) / sizes
            order = np.argsort(-means, kind="stable")
            wanted = scores.size - round(scores.size * ratio)
            kept = int(np.searchsorted(np.cumsum(sizes[order]), wanted)) + 1
            best = np.zeros(sizes.size, np.bool_)
            best[order[: max(1, kept) if wanted else 1]] = True
            chosen: Array = best[ids]
            return chosen
        if by_row:
            columns = scores.shape[-1]
            return _best_of_each(scores, max(1, columns - round(columns * ratio)))
        kept = max(1, scores.size - round(scores.size * ratio))
        return _best_of_each(scores.reshape(1, -1), kept).reshape(scores.shape)

    def blocks(self, layout: Layout, shape: tuple[int, ...]) -> Array:
        """The number of the block that each weight belongs to; blocks at the edges are smaller."""
        groups, rows, columns = shape
        channels, positions = layout.natural
        across = -(-channels // self.m)
        place = np.arange(columns)
        column = place // channels * across + place % channels // self.m
        row = np.arange(rows) // self.n
        down = -(-rows // self.n)
        group = np.arange(groups).reshape(-1, 1, 1) * down
        ids: Array = (group + row.reshape(-1, 1)) * (across * positions) + column
        return ids


def parse_pattern(text: str) -> Pattern:
    """Read ``unstructured``, ``2:4`` (keep 2 of each 4) or ``4x1`` (4 outputs, 1 input).

    Raises:
        ValueError: When it is none of these.
    """
    if text == "unstructured":
        return Pattern()
    if match := _N_OF_M.fullmatch(text):
        n, m = int(match[1]), int(match[2])
        if 0 < n < m:
            return Pattern("n:m", n, m)
    if match := _BLOCK.fullmatch(text):
        n, m = int(match[1]), int(match[2])
        if n > 0 and m > 0:
            return Pattern("block", n, m)
    raise ValueError(f"a pattern is unstructured, N:M with N below M, or RxC, not '{text}'")


def _best_of_each(scores: Array, count: int) -> Array:
    """The ``count`` largest along the last axis."""
    keep = np.zeros(scores.shape, np.bool_)
    if count >= scores.shape[-1]:
        keep[...] = True
        return keep
    best = np.argpartition(-scores, count - 1, axis=-1)[..., :count]
    np.put_along_axis(keep, best, True, axis=-1)
    return keep
