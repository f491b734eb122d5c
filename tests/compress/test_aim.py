"""How much to prune is found by trying."""

import random
from collections.abc import Callable

import pytest

from onnxopt.compress.aim import _falling, aim


def line(fixed: float, slope: float = 1.0) -> Callable[[float], float]:
    """A model of which a fixed share of the time cannot be pruned away."""
    return lambda amount: fixed + (1 - fixed) * (1 - slope * amount)


def test_nothing_is_pruned_where_nothing_need_be() -> None:
    amount, found = aim(lambda _: 0.46, 0.45)
    assert (amount, found) == (0.0, {0.0: 0.46})


@pytest.mark.parametrize("fixed", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_the_target_is_met_and_little_more(fixed: float, share: float) -> None:
    left = line(fixed)
    amount, found = aim(left, share)
    assert left(amount) <= share * 1.05
    assert left(amount) >= share * 0.85
    assert len(found) <= 5


def test_steps_are_no_trouble() -> None:
    """Widths are rounded, so that the time falls in steps."""

    def left(amount: float) -> float:
        return 1.0 - round(amount * 4) / 4

    amount, _ = aim(left, 0.5)
    assert left(amount) <= 0.525


@pytest.mark.parametrize("seed", range(20))
def test_what_is_measured_unevenly_is_no_trouble(seed: int) -> None:
    """Each measurement is off by up to 6 %, as on a busy machine."""
    left, generator = line(0.2), random.Random(seed)
    amount, _ = aim(lambda amount: left(amount) * generator.uniform(0.94, 1.06), 0.5)
    assert 0.5 * 0.82 <= left(amount) <= 0.5 * 1.13


def test_one_lucky_measurement_does_not_decide() -> None:
    """Less cannot be left after less pruning: neighbours that say so share their mean."""
    found = {0.2: 0.45, 0.3: 0.75, 0.5: 0.5}
    assert _falling(found) == pytest.approx({0.2: 0.6, 0.3: 0.6, 0.5: 0.5})
    assert _falling({0.0: 1.0, 0.5: 0.6, 0.25: 0.8}) == {0.0: 1.0, 0.25: 0.8, 0.5: 0.6}


def test_what_cannot_be_met_is_met_as_nearly_as_may_be() -> None:
    amount, found = aim(line(0.6), 0.3)
    assert amount == 0.85
    assert found[amount] == min(found.values())


def test_pruning_that_changes_nothing_ends_soon() -> None:
    _, found = aim(lambda _: 0.9, 0.5)
    assert len(found) <= 4
