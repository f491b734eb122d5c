"""Which learning rate to train with, found by a few short trainings from the same start.

No one rate serves every network: what a convolutional network needs to recover from pruning
destroys what a transformer knows. A short training with the same decay as the whole one tells rates
apart (a rate that is judged before it has decayed looks worse than it is: Wu et al., 2018,
"Understanding short-horizon bias", arXiv:1803.02021).

The shorter a trial, the more it favours low rates, and some networks get worse before they get
better. So where no rate helps in so few steps, the best of them is tried for longer, and then lower
ones, until one helps; where none does, the lowest harms least.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

__all__ = [
    "TRIAL_WARM_UP",
    "USUAL_RATE",
    "RateTrial",
    "best_rate",
    "next_trial",
    "told",
    "trial_steps",
]

#: Half decades. The first one that is tried is the usual one.
_LADDER = (0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
#: Lower rates are only tried for longer, where no short trial helps.
_LOWEST_SHORT = 0.0003
#: Taken without a trial where the training is too short for one.
USUAL_RATE = 0.003
#: A trial takes one in so many steps of the training, ...
_SHARE = 20
#: ... but at least so many, with which rates can be told apart, and no more than these.
_LEAST_STEPS, _MOST_STEPS = 10, 50
#: Trials would take most of a training shorter than this.
_SHORTEST = 100
#: Where short trials decide nothing, longer ones take so many times as many steps.
_LONGER = 3
#: Share of a trial's steps in which the rate rises. In the first steps AdamW knows gradients by
#: their signs alone, and a warm-up of a twentieth of ten steps would be none.
TRIAL_WARM_UP = 0.3


@dataclasses.dataclass(frozen=True)
class RateTrial:
    """What a short training with one rate came to.

    Attributes:
        rate: The relative learning rate at its highest.
        loss: The loss on held-out samples after it; infinite when it failed. It is the loss, not
            the share of equal decisions, since few samples tell that only coarsely.
        steps: How many steps it took.
    """

    rate: float
    loss: float
    steps: int


def trial_steps(steps: int) -> int:
    """How many steps each trial takes for a training of so many; 0 for no trial."""
    if steps < _SHORTEST:
        return 0
    return min(_MOST_STEPS, max(_LEAST_STEPS, steps // _SHARE))


def next_trial(trials: Sequence[RateTrial], before: float, length: int) -> tuple[float, int] | None:
    """The rate to try next, and for how many steps; None when enough is known.

    Args:
        trials: Those so far.
        before: The held-out loss before any training.
        length: Steps of a short trial.
    """
    if not trials:
        return USUAL_RATE, length
    short = [trial for trial in trials if trial.steps == length]
    longer = [trial for trial in trials if trial.steps > length]
    known, best = {trial.rate for trial in short}, _best(short)
    place = _LADDER.index(best.rate)
    for neighbour in _LADDER[max(0, place - 1) : place + 2]:
        if neighbour >= _LOWEST_SHORT and neighbour not in known:
            return neighbour, length
    if best.loss < before or (longer and longer[-1].loss < before):
        return None
    if not longer:
        return best.rate, length * _LONGER
    lower = _LADDER.index(longer[-1].rate) - 1
    return (_LADDER[lower], length * _LONGER) if lower >= 0 else None


def best_rate(trials: Sequence[RateTrial]) -> float:
    """The rate with the least loss, the lowest where losses are equal.

    Where there are longer trials, that of the last: it helped, or it is the lowest rate of all.
    """
    if len({trial.steps for trial in trials}) > 1:
        return trials[-1].rate
    return _best(trials).rate


def told(trials: Sequence[RateTrial], before: float) -> str:
    """What was tried and chosen, in a sentence.

    Args:
        trials: The trials.
        before: The held-out loss before any training.
    """
    shortest = min(trial.steps for trial in trials)
    tried = ", ".join(
        f"{trial.loss:.4g} with {trial.rate:g}"
        + (f" in {trial.steps} steps" if trial.steps > shortest else "")
        for trial in sorted(trials, key=lambda trial: (trial.steps, trial.rate))
    )
    text = (
        f"The learning rate {best_rate(trials):g} was chosen by trials of {shortest} steps, by the "
        f"held-out loss after each: {tried}"
    )
    if all(not trial.loss < before for trial in trials):
        return f"{text}; it was {before:.4g} before, so none of them helped in so few steps."
    return f"{text}; {before:.4g} before."


def _best(trials: Sequence[RateTrial]) -> RateTrial:
    return min(trials, key=lambda trial: (_ranked(trial.loss), trial.rate))


def _ranked(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
