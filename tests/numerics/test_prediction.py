"""The noise of other samples, against numbers drawn at random."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxopt.numerics.prediction import most_noise


@pytest.mark.parametrize("degrees", [4, 10, 50, 1000])
@pytest.mark.parametrize(("deviations", "share"), [(1.645, 0.95), (1.0, 0.8413)])
def test_other_samples_have_less_noise_as_often_as_said(
    degrees: int, deviations: float, share: float
) -> None:
    seen, others = np.random.default_rng(degrees).chisquare(degrees, (2, 100_000))
    found = np.mean(others <= most_noise(math.sqrt(2 / degrees), deviations) * seen)
    assert found == pytest.approx(share, abs=0.01)


def test_noise_that_is_the_same_everywhere_is_expected_everywhere() -> None:
    assert most_noise(0.0, 1.8) == 1.0


def test_the_more_uneven_the_noise_the_more_is_expected() -> None:
    factors = [most_noise(spread, 1.8) for spread in (0.01, 0.1, 0.3, 0.6, 1.0)]
    assert factors == sorted(factors)
    assert factors[0] == pytest.approx(1 + math.sqrt(2) * 1.8 * 0.01, rel=0.01)


def test_where_too_little_was_seen_nothing_is_promised() -> None:
    assert most_noise(1.0, 3.0) == math.inf
