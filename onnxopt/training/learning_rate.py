"""Which learning rate to train with, found by a few short trainings from the same start.

No one rate serves every network: what a convolutional network needs to recover from pruning
destroys what a transformer knows. A short training with the same warm-up and decay as the whole one
tells rates apart (a rate that is judged before it has decayed looks worse than it is: Wu et al.,
2018, "Understanding short-horizon bias", arXiv:1803.02021).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

__all__ = ["USUAL_RATE", "RateTrial", "best_rate", "next_rate", "told", "trial_steps"]

#: Half decades. The first one that is tried is the usual one.
_LADDER = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
#: Taken without a trial where the training is too short for one.
USUAL_RATE = 0.003
#: A trial takes one in so many steps of the training, ...
_SHARE = 20
#: ... but at least so many, with which rates can be told apart, and no more than these.
_LEAST_STEPS, _MOST_STEPS = 10, 50
#: Trials would take most of a training shorter than this.
_SHORTEST = 100


@dataclasses.dataclass(frozen=True)
class RateTrial:
    """What a short training with one rate came to.

    Attributes:
        rate: The relative learning rate at its highest.
        loss: The loss on held-out samples after it; infinite when it failed. It is the loss, not
            the share of equal decisions, since few samples tell that only coarsely.
    """

    rate: float
    loss: float


def trial_steps(steps: int) -> int:
    """How many steps each trial takes for a training of so many; 0 for no trial."""
    if steps < _SHORTEST:
        return 0
    return min(_MOST_STEPS, max(_LEAST_STEPS, steps // _SHARE))


def next_rate(trials: Sequence[RateTrial]) -> float | None:
    """The rate to try next: a neighbour of the best so far; None when both are known."""
    if not trials:
        return USUAL_RATE
    known = {trial.rate for trial in trials}
    place = _LADDER.index(best_rate(trials))
    for neighbour in (place - 1, place + 1):
        if 0 <= neighbour < len(_LADDER) and _LADDER[neighbour] not in known:
            return _LADDER[neighbour]
    return None


def best_rate(trials: Sequence[RateTrial]) -> float:
    """The rate with the least loss; the lowest where losses are equal."""
    return min(trials, key=lambda trial: (_ranked(trial.loss), trial.rate)).rate


def told(trials: Sequence[RateTrial], before: float) -> str:
    """What was tried and chosen, in a sentence.

    Args:
        trials: The trials.
        before: The held-out loss before any training.
    """
    tried = ", ".join(
        f"{trial.loss:.4g} with {trial.rate:g}"
        for trial in sorted(trials, key=lambda trial: trial.rate)
    )
    text = (
        f"The learning rate {best_rate(trials):g} was chosen by short trials, by the held-out loss "
        f"after each: {tried}"
    )
    if all(not trial.loss < before for trial in trials):
        return f"{text}; it was {before:.4g} before, so none of them helped in so few steps."
    return f"{text}; {before:.4g} before."


def _ranked(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
