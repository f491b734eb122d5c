"""Which rate is tried next, and which is chosen."""

import math
from collections.abc import Callable

import pytest

from onnxopt.training.learning_rate import RateTrial, best_rate, next_trial, told, trial_steps


def climbed(loss: Callable[[float, int], float], before: float = math.inf) -> list[RateTrial]:
    trials: list[RateTrial] = []
    while (trial := next_trial(trials, before, 10)) is not None:
        rate, steps = trial
        trials.append(RateTrial(rate, loss(rate, steps), steps))
    return trials


@pytest.mark.parametrize("best", [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1])
def test_the_best_rate_is_found_with_its_neighbours_tried(best: float) -> None:
    trials = climbed(lambda rate, _: abs(math.log(rate / best)))
    assert best_rate(trials) == best
    assert len({trial.rate for trial in trials}) == len(trials)
    assert 3 <= len(trials) <= 6 or best == 0.0003
    assert {trial.steps for trial in trials} == {10}


def test_what_fails_is_worst_and_among_failures_the_lowest_rate_is_taken() -> None:
    trials = climbed(lambda rate, _: math.nan if rate > 0.002 else rate)
    assert best_rate(trials) == 0.0003
    assert best_rate(climbed(lambda rate, _: math.inf)) == 0.00003


def test_where_short_trials_do_not_help_longer_ones_decide() -> None:
    """Worse before it is better: ten steps favour rates that do next to nothing."""
    trials = climbed(lambda rate, steps: 1 + rate * (100 if steps == 10 else -100), before=1.0)
    assert [(trial.rate, trial.steps) for trial in trials] == [
        (0.003, 10),
        (0.001, 10),
        (0.0003, 10),
        (0.0003, 30),
    ]
    assert best_rate(trials) == 0.0003


@pytest.mark.parametrize(("helps", "chosen"), [(0.0001, 0.0001), (0.00003, 0.00003), (0, 0.00003)])
def test_lower_rates_are_tried_until_one_helps(helps: float, chosen: float) -> None:
    trials = climbed(lambda rate, _: 1 + (rate if rate > helps else -rate), before=1.0)
    assert best_rate(trials) == chosen == trials[-1].rate
    assert len(trials) <= 6


def test_trials_are_short_and_a_short_training_has_none() -> None:
    assert [trial_steps(steps) for steps in (0, 99, 100, 400, 10_000)] == [0, 0, 10, 20, 50]


def test_it_is_told_whether_any_helped() -> None:
    trials = [RateTrial(0.003, 0.5, 10), RateTrial(0.001, 0.25, 10)]
    assert told(trials, 0.4) == (
        "The learning rate 0.001 was chosen by trials of 10 steps, by the held-out loss after "
        "each: 0.25 with 0.001, 0.5 with 0.003; 0.4 before."
    )
    assert told(trials, 0.2).endswith("it was 0.2 before, so none of them helped in so few steps.")
    longer = told([*trials, RateTrial(0.001, 0.1, 30)], 0.2)
    assert longer.endswith("0.5 with 0.003, 0.1 with 0.001 in 30 steps; 0.2 before.")
