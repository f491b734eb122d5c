"""Which rate is tried next, and which is chosen."""

import math
from collections.abc import Callable

import pytest

from onnxopt.training.learning_rate import RateTrial, best_rate, next_rate, told, trial_steps


def climbed(loss: Callable[[float], float]) -> list[RateTrial]:
    trials: list[RateTrial] = []
    while (rate := next_rate(trials)) is not None:
        trials.append(RateTrial(rate, loss(rate)))
    return trials


@pytest.mark.parametrize("best", [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1])
def test_the_best_rate_is_found_with_its_neighbours_tried(best: float) -> None:
    trials = climbed(lambda rate: abs(math.log(rate / best)))
    assert best_rate(trials) == best
    assert len({trial.rate for trial in trials}) == len(trials)
    assert 3 <= len(trials) <= 6 or best == 0.0003


def test_what_fails_is_worst_and_among_failures_the_lowest_rate_is_taken() -> None:
    trials = climbed(lambda rate: math.nan if rate > 0.002 else rate)
    assert best_rate(trials) == 0.0003
    assert best_rate(climbed(lambda rate: math.inf)) == 0.0003


def test_trials_are_short_and_a_short_training_has_none() -> None:
    assert [trial_steps(steps) for steps in (0, 99, 100, 400, 10_000)] == [0, 0, 10, 20, 50]


def test_it_is_told_whether_any_helped() -> None:
    trials = [RateTrial(0.003, 0.5), RateTrial(0.001, 0.25)]
    assert told(trials, 0.4) == (
        "The learning rate 0.001 was chosen by short trials, by the held-out loss after each: "
        "0.25 with 0.001, 0.5 with 0.003; 0.4 before."
    )
    assert told(trials, 0.2).endswith("it was 0.2 before, so none of them helped in so few steps.")
