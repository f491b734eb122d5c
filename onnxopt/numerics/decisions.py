"""How often a noisy model should decide otherwise, foretold from margins and noise.

Counting flips takes many decisions: of 24, one is 4 %, and none proves little. Margins and noise
say more. A decision flips where the noise of the difference between two scores is larger than the
difference itself; both are seen in every sample, whether it flips or not. Holding each margin
against the noise of all samples (the two are assumed to be independent, and so are rivals, which
makes the estimate rather too high) gives a number that changes smoothly and needs no flip to be
seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Flips", "expected_flips"]

Array = np.ndarray[Any, Any]

#: Scores that come so near to the first may overtake it.
_RIVALS = 5
#: Probabilities below this are all alike.
_LEAST_PROBABILITY = 1e-12
_SUM_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Flips:
    """Decisions that are expected to come out otherwise.

    Attributes:
        share: Of all decisions, from 0 to 1.
        error: Standard error of that, from the spread over the decisions that were seen.
    """

    share: float
    error: float


def expected_flips(
    scores: Sequence[Array],
    changed: Sequence[Array],
    axis: int = -1,
    others: Sequence[Array] = (),
) -> Flips | None:
    """How often the greatest score should be another one.

    Args:
        scores: By sample; along an axis, the scores or probabilities that a decision is between.
        changed: The same from the model with noise.
        axis: Which axis that is.
        others: Scores of other samples, whose margins count too.

    Returns:
        The estimate, or None where there is only one decision, or nothing to decide between.
    """
    rows, noisy = _rows(scores, axis), _rows(changed, axis)
    everything = _rows([*scores, *others], axis)
    if len(everything) < 2 or rows.shape[1] < 2 or rows.shape != noisy.shape:
        return None
    first, rivals, _ = _rivals(rows)
    noise = noisy - rows
    noise = noise - np.take_along_axis(noise, first, 1)
    pool = np.take_along_axis(noise, rivals, 1).reshape(-1)
    pool = np.sort(np.concatenate([pool, -pool]))
    _, _, margins = _rivals(everything)
    overtaken = 1 - np.searchsorted(pool, margins, side="right") / len(pool)
    flips = 1 - np.prod(1 - overtaken, axis=1)
    return Flips(float(flips.mean()), float(flips.std(ddof=1) / math.sqrt(len(flips))))


def _rivals(rows: Array) -> tuple[Array, Array, Array]:
    """The greatest score of each decision, those that come next, and how far below they are."""
    first = rows.argmax(axis=1)[:, None]
    margins = np.take_along_axis(rows, first, 1) - rows
    rivals = np.argsort(margins, axis=1, kind="stable")[:, 1 : _RIVALS + 1]
    return first, rivals, np.take_along_axis(margins, rivals, 1)


def _rows(arrays: Sequence[Array], axis: int) -> Array:
    """Scores by decision; of probabilities their logarithms, whose noise is more even."""
    rows = [np.moveaxis(np.asarray(each, np.float64), axis, -1) for each in arrays]
    flat = [each.reshape(-1, each.shape[-1]) for each in rows]
    if len({each.shape[1] for each in flat}) != 1:
        return np.zeros((0, 0))
    together = np.concatenate(flat)
    if together.min() >= 0 and np.allclose(together.sum(axis=1), 1, atol=_SUM_TOLERANCE):
        return np.asarray(np.log(np.maximum(together, _LEAST_PROBABILITY)))
    return together
