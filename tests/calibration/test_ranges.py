"""Ranges against brute force on the numbers themselves."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.calibration import Histogram, HistogramObserver, Range, RangeObserver, ranges
from onnxopt.calibration.activation import Activation
from onnxopt.numerics.grids import INT8, UINT8, Grid, Levels, grid_over

SYMMETRIC = Levels(-128, 127, symmetric=True)
INT16 = Levels(-32768, 32767)


def _histogram(numbers: np.ndarray) -> HistogramObserver:
    observer = Histogram(2048, 10**7).start()
    for part in np.array_split(numbers.astype(np.float32), 4):
        observer.update(Activation(part))
    return observer


def _distributions() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(5)
    normal = generator.standard_normal(40_000)
    return {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "relu6": np.clip(normal * 8, 0, 6),
        "outliers": np.concatenate([normal, [80.0, -3.0, 65.0]]),
        "heavy": generator.standard_t(2, 40_000),
        "shifted": normal * 0.1 + 7,
        "negative": -np.abs(normal) - 1,
        "tiny": normal * 1e-20,
    }


@pytest.mark.parametrize("name", _distributions())
@pytest.mark.parametrize("levels", [UINT8, INT8, SYMMETRIC, Levels(-8, 7)], ids=str)
def test_the_error_of_a_histogram_is_that_of_its_numbers(name: str, levels: Levels) -> None:
    numbers = _distributions()[name].astype(np.float32)
    histogram = _histogram(numbers)
    for shrink in (1.0, 0.6, 0.2):
        grid = grid_over(histogram.low * shrink, histogram.high * shrink, levels)
        wanted = float(np.square(grid.round(numbers) - numbers, dtype=np.float64).mean())
        assert ranges.tensor_error(histogram, grid) == pytest.approx(wanted, rel=0.08)


@pytest.mark.parametrize("name", _distributions())
@pytest.mark.parametrize("levels", [UINT8, INT8, SYMMETRIC, INT16], ids=str)
def test_every_choice_is_a_grid_that_holds_zero(name: str, levels: Levels) -> None:
    histogram = _histogram(_distributions()[name])
    for choice, choose in ranges.CHOICES.items():
        grid = choose(histogram, levels)
        assert grid.scale > 0, choice
        assert levels.low <= grid.zero_point <= levels.high
        assert float(np.float32(grid.scale)) == grid.scale
        np.testing.assert_array_equal(grid.round(np.zeros(1)), 0)


@pytest.mark.parametrize("name", _distributions())
@pytest.mark.parametrize("levels", [UINT8, SYMMETRIC, Levels(-8, 7)], ids=str)
def test_least_error_is_no_more_than_that_of_any_other(name: str, levels: Levels) -> None:
    numbers = _distributions()[name].astype(np.float32)
    histogram = _histogram(numbers)

    def error(grid: Grid) -> float:
        return float(np.square(grid.round(numbers) - numbers, dtype=np.float64).mean())

    best = error(ranges.least_error(histogram, levels))
    others = [error(choose(histogram, levels)) for choose in ranges.CHOICES.values()]
    assert best <= min(others) * 1.05


def test_min_max_clips_nothing() -> None:
    numbers = _distributions()["outliers"]
    grid = ranges.min_max(_histogram(numbers), UINT8)
    assert grid.least <= numbers.min() + grid.scale / 2
    assert grid.greatest >= numbers.max() - grid.scale / 2
    assert np.abs(grid.round(numbers) - numbers).max() <= grid.scale * 0.501


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9])
def test_percentiles_are_those_of_the_numbers(percent: float) -> None:
    numbers = _distributions()["normal"]
    grid = ranges.percentile(_histogram(numbers), UINT8, percent)
    low, high = np.quantile(numbers, [(1 - percent / 100) / 2, (1 + percent / 100) / 2])
    assert grid.scale == pytest.approx((high - low) / 255, rel=0.01)
    symmetric = ranges.percentile(_histogram(numbers), SYMMETRIC, percent)
    assert symmetric.scale * 127 == pytest.approx(
        np.quantile(np.abs(numbers), percent / 100), rel=0.01
    )


def test_a_percentile_of_rectified_numbers_begins_at_zero() -> None:
    grid = ranges.percentile(_histogram(_distributions()["relu"]), UINT8, 99.0)
    assert grid.zero_point == 0


def test_entropy_cuts_off_outliers_and_nothing_of_an_even_distribution() -> None:
    outliers = _histogram(_distributions()["outliers"])
    assert ranges.entropy(outliers, UINT8).scale < 0.5 * ranges.min_max(outliers, UINT8).scale
    even = _histogram(np.random.default_rng(0).uniform(-1, 1, 100_000))
    assert ranges.entropy(even, UINT8).scale > 0.9 * ranges.min_max(even, UINT8).scale


def test_entropy_does_not_end_at_a_number_that_is_there_often() -> None:
    generator = np.random.default_rng(0)
    numbers = np.concatenate([np.full(30_000, 0.19), np.abs(generator.standard_normal(20_000))])
    assert ranges.entropy(_histogram(numbers), UINT8).greatest > 2


def test_the_mean_range_is_that_of_the_samples() -> None:
    observer: RangeObserver = Range().start()
    for sample in ([-1.0, 2.0], [-3.0, 6.0]):
        observer.update(Activation(np.array(sample, np.float32)))
    grid = ranges.mean_range(observer, UINT8)
    assert grid.scale == pytest.approx(6 / 255)


def test_a_tensor_of_zeros_has_a_grid() -> None:
    histogram = _histogram(np.zeros(100))
    for choose in ranges.CHOICES.values():
        assert choose(histogram, UINT8) == Grid(1.0, 0, UINT8)
        assert choose(histogram, INT8).zero_point in (-128, 0)
    nothing = Histogram().start()
    assert ranges.min_max(nothing, UINT8).scale == 1.0


def test_the_consumer_decides() -> None:
    """Two channels: the outlier sits where the weights are zero, then where they are large."""
    generator = np.random.default_rng(0)
    rows = np.zeros((200, 1, 2), np.float32)
    rows[:, 0, 0] = generator.standard_normal(200)
    rows[::10, 0, 1] = 60.0
    histogram = _histogram(rows.reshape(-1))
    all_of_it = ranges.min_max(histogram, UINT8)
    deaf = np.array([[[1.0], [0.0]]], np.float32)
    keen = np.array([[[0.1], [5.0]]], np.float32)
    _, grid, error = ranges.best_for_consumers(histogram, UINT8, rows, [deaf])
    assert grid.greatest < 10
    assert error == ranges.consumer_error(grid, rows, [deaf], histogram)
    assert error < 0.1 * ranges.consumer_error(all_of_it, rows, [deaf], histogram)
    _, grid, _ = ranges.best_for_consumers(histogram, UINT8, rows, [keen])
    assert grid.greatest > 59


def test_clipping_that_the_rows_miss_is_counted() -> None:
    numbers = np.concatenate([np.random.default_rng(0).standard_normal(50_000), [1000.0] * 5])
    histogram = _histogram(numbers)
    rows = numbers[:300].reshape(100, 1, 3).astype(np.float32)
    weights = [np.ones((1, 3, 2), np.float32)]
    cut = grid_over(-4, 4, UINT8)
    assert ranges.consumer_error(cut, rows, weights) < 0.01
    assert ranges.consumer_error(cut, rows, weights, histogram) > 100
