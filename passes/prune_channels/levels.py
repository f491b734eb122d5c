"""How far to prune each group, so that all together save enough and harm least."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ladder", "climb", "hull", "rungs"]

Mask = NDArray[np.bool_]
_LEAST_NOISE = 1e-20


def rungs(count: int, step: int, most: int) -> list[int]:
    """Numbers of units to remove, such that the rest is a multiple of ``step``, in rising order.

    Args:
        count: Units that there are.
        step: What the number of units that stay should be a multiple of.
        most: Remove at most so many.
    """
    step = max(1, step)
    kept = range((count - 1) // step * step, 0, -step)
    found = [count - each for each in kept if count - each <= most]
    if not found and most >= 1 and step > 1:
        return rungs(count, step // 2, most)
    return found


@dataclasses.dataclass(frozen=True)
class Ladder:
    """What it costs to prune one group further and further.

    Attributes:
        removed: Numbers of units to remove, rising; the first is 0.
        harm: How much the model suffers at each, rising; 0 at the first.
        atoms: By atom, whether it is removed, at each.
    """

    removed: tuple[int, ...]
    harm: tuple[float, ...]
    atoms: tuple[Mask, ...]


def hull(removed: Sequence[int], harm: Sequence[float]) -> list[int]:
    """Indices of the points on the lower convex hull, from the first to the last."""
    kept: list[int] = []
    for index in range(len(removed)):
        while len(kept) > 1:
            one, other = kept[-2], kept[-1]
            cross = (removed[other] - removed[one]) * (harm[index] - harm[one]) - (
                harm[other] - harm[one]
            ) * (removed[index] - removed[one])
            if cross > 0:
                break
            kept.pop()
        kept.append(index)
    return kept


def interpolated(
    removed: Sequence[int], measured: Sequence[tuple[int, float]]
) -> tuple[float, ...]:
    """Harm at each number of removed units, from a few that were measured.

    Between those its logarithm is linear in the logarithm of the number, as it is for a power.
    """
    points = sorted(measured)
    x = np.log([count for count, _ in points])
    y = np.log(np.maximum([harm for _, harm in points], _LEAST_NOISE))
    slope = max(1.0, (y[-1] - y[0]) / (x[-1] - x[0])) if len(points) > 1 else 1.5
    found = []
    for count in removed:
        place = np.log(count)
        if place <= x[0]:
            value = y[0] + slope * (place - x[0])
        elif place >= x[-1]:
            value = y[-1] + slope * (place - x[-1])
        else:
            value = float(np.interp(place, x, y))
        found.append(float(np.exp(value)))
    return tuple(np.maximum.accumulate(found).tolist())


def climb(
    ladders: Sequence[Ladder], cost: Callable[[Mask], float], wanted: float, count: int
) -> list[tuple[Mask, float]]:
    """Prune the group that suffers least for what it saves, again and again.

    Harm of groups adds up, since their errors are about independent. What a step saves depends on
    what is gone already: a layer shrinks with its inputs and with its outputs.

    Args:
        ladders: One for each group.
        cost: What is left to pay when atoms are removed.
        wanted: Stop when the cost is no higher.
        count: Number of atoms.

    Returns:
        All states on the way, each with its cost; the last one is at the wanted cost, or as near
        as can be.
    """
    state = np.zeros(count, np.bool_)
    chosen = [0] * len(ladders)
    paths = [hull(each.removed, each.harm) for each in ladders]
    states = [(state, cost(state))]
    while states[-1][1] > wanted:
        state, before = states[-1]
        best: tuple[float, int, Mask, float] | None = None
        for group, (ladder, path) in enumerate(zip(ladders, paths, strict=True)):
            if chosen[group] + 1 >= len(path):
                continue
            here, there = path[chosen[group]], path[chosen[group] + 1]
            after = state | ladder.atoms[there]
            left = cost(after)
            price = (ladder.harm[there] - ladder.harm[here]) / max(before - left, 1e-12)
            if best is None or price < best[0]:
                best = price, group, after, left
        if best is None:
            break
        chosen[best[1]] += 1
        states.append((best[2], best[3]))
    return states
