"""How the learning rate and the sparsity go with the steps of a training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from onnxopt.errors import OptionError

__all__ = ["PruningSchedule", "keep_largest", "warm_up_and_cosine"]


def warm_up_and_cosine(step: int, steps: int, warm_up: float = 0.05) -> float:
    """Factor of the learning rate: a straight rise, then half a cosine down to zero.

    ``(k + 1) / w`` for the first ``w`` steps, ``(1 + cos(pi (k - w) / (n - w))) / 2`` after them:
    Loshchilov and Hutter, 2017, "SGDR" (arXiv:1608.03983), without restarts.

    Args:
        step: Steps that were taken.
        steps: Steps in all, n.
        warm_up: Share of them that the rise takes, w / n.
    """
    rise = max(1, round(warm_up * steps))
    if step < rise:
        return (step + 1) / rise
    done = min(1.0, (step - rise) / max(1, steps - rise))
    return 0.5 * (1 + math.cos(math.pi * done))


@dataclasses.dataclass(frozen=True)
class PruningSchedule:
    """When how many weights are zero.

    Attributes:
        kind: ``one-shot``: all at the first step. ``iterative``: in ``rounds`` equal parts, each
            followed by as much training as the others. ``gradual``: along a cubic,
            ``s_f + (s_i - s_f) (1 - t)^3`` with t from 0 to 1 between ``begin`` and ``end`` (Zhu
            and Gupta, 2017, "To prune, or not to prune", arXiv:1710.01878): much while there is
            much to choose from, little towards the end.
        sparsity: Share of zeros in the end, s_f.
        n_m: ``(n, m)`` where of every m weights along the input axis n are to stay, or None.
        begin: Share of the training before the first pruning.
        end: Share of it after which nothing more is pruned; the rest repairs.
        every: Masks are chosen anew each so many steps, for ``gradual``.
        rounds: Number of parts, for ``iterative``.
    """

    kind: Literal["one-shot", "iterative", "gradual"] = "gradual"
    sparsity: float = 0.5
    n_m: tuple[int, int] | None = None
    begin: float = 0.0
    end: float = 0.6
    every: int = 10
    rounds: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise OptionError(f"a sparsity is a share from 0 up to 1, not {self.sparsity:g}")
        if not 0 <= self.begin < self.end <= 1:
            raise OptionError(f"pruning begins before it ends: {self.begin:g} to {self.end:g}")
        if self.n_m is not None and not 0 < self.n_m[0] < self.n_m[1]:
            raise OptionError(f"N:M keeps fewer than all: {self.n_m[0]}:{self.n_m[1]}")

    def sparsity_at(self, step: int, steps: int, initial: float = 0.0) -> float:
        """Share of zeros after a number of steps, never below the initial one."""
        final = max(self.sparsity, initial)
        if self.kind == "one-shot":
            return final
        begin, end = self.begin * steps, max(self.end * steps, self.begin * steps + 1)
        done = min(1.0, max(0.0, (step - begin) / (end - begin)))
        if self.kind == "iterative":
            parts = min(self.rounds, math.floor(done * self.rounds) + 1) if step >= begin else 0
            return initial + (final - initial) * parts / self.rounds
        return final + (initial - final) * (1 - done) ** 3

    def is_due(self, step: int, steps: int) -> bool:
        """Whether masks are chosen anew before this step."""
        if step == 0:
            return True
        if self.kind == "one-shot":
            return False
        if self.kind == "iterative":
            return self.sparsity_at(step, steps) != self.sparsity_at(step - 1, steps)
        begin, end = round(self.begin * steps), round(self.end * steps)
        return begin <= step <= end and ((step - begin) % self.every == 0 or step == end)


def keep_largest(
    weights: Mapping[str, Tensor], sparsity: float, n_m: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """Choose by magnitude what stays.

    Args:
        weights: Weights by name; each tensor is ranked on its own, which keeps any layer from
            being emptied (facts of one-shot global ranking: a whole layer goes).
        sparsity: Share of zeros in each.
        n_m: Keep n of every m along axis 1 instead, where m divides it.

    Returns:
        For each tensor True where a number stays. What is zero already is never kept instead of
        something that is not.
    """
    chosen: dict[str, Tensor] = {}
    for name, weight in weights.items():
        size = weight.detach().abs()
        if n_m is not None and weight.ndim >= 2 and weight.shape[1] % n_m[1] == 0:
            n, m = n_m
            moved = size.movedim(1, -1)
            groups = moved.reshape(-1, m)
            order = groups.argsort(dim=1, descending=True, stable=True)
            keep = torch.zeros_like(groups, dtype=torch.bool)
            keep.scatter_(1, order[:, :n], True)
            chosen[name] = keep.reshape(moved.shape).movedim(-1, 1).contiguous()
            continue
        count = weight.numel() - round(sparsity * weight.numel())
        order = size.reshape(-1).argsort(descending=True, stable=True)
        keep = torch.zeros(weight.numel(), dtype=torch.bool)
        keep[order[:count]] = True
        chosen[name] = keep.reshape(weight.shape)
    return chosen
