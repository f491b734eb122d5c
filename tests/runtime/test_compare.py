"""How outputs are compared, and how paired times are judged."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.runtime.compare import Difference, Tolerance, compare, worst
from onnxopt.runtime.statistics import latency, ratio


def _one(expected: Any, actual: Any, tolerance: Tolerance | None = None) -> Difference:
    [difference] = compare([expected], [actual], ["y"], tolerance)
    return difference


def _array(values: Any, dtype: Any = np.float32) -> np.ndarray:
    return np.asarray(values).astype(dtype)


class TestFloats:
    @pytest.mark.parametrize(
        ("dtype", "inside", "outside"),
        [
            (np.float64, 1e-4, 1e-2),
            (np.float32, 1e-4, 1e-2),
            (np.float16, 4e-3, 0.03),
            (ml_dtypes.bfloat16, 2e-2, 0.2),
        ],
    )
    def test_tolerance_follows_the_mantissa(
        self, dtype: type, inside: float, outside: float
    ) -> None:
        one = np.linspace(1, 2, 50)
        assert _one(_array(one, dtype), _array(one * (1 + inside), dtype)).agrees
        assert not _one(_array(one, dtype), _array(one * (1 + outside) + outside, dtype)).agrees

    def test_small_elements_are_measured_by_the_largest(self) -> None:
        one = _array([1000.0, 1e-3])
        assert _one(one, one + _array([0, 1e-2])).agrees
        assert not _one(one, one + _array([0, 1e-1])).agrees

    @pytest.mark.parametrize(
        "dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
    )
    def test_zeros_stand_for_nothing_else(self, dtype: type) -> None:
        one = _array(np.linspace(1, 2, 50), dtype)
        assert not _one(one, np.zeros_like(one)).agrees

    @pytest.mark.parametrize("filler", [-1e4, -65504.0, -1e9, float(np.finfo(np.float32).min)])
    def test_masked_elements_do_not_hide_the_others(self, filler: float) -> None:
        one = _array([filler, 1.0, -2.0, filler])
        assert _one(one, one + _array([0, 1e-5, 0, 0])).agrees
        wrong = _one(one, one + _array([0, 0.1, 0, 0]))
        assert not wrong.agrees
        assert wrong.max_scaled == pytest.approx(0.05)

    def test_a_mask_that_moves_is_a_difference(self) -> None:
        assert not _one(_array([-1e9, 1.0, 2.0]), _array([1.0, -1e9, 2.0])).agrees
        assert not _one(_array([-1e9, 1.0, 2.0]), _array([-2e9, 1.0, 2.0])).agrees

    def test_zeros(self) -> None:
        assert _one(_array([0, 0]), _array([0, 0])).agrees
        assert not _one(_array([0, 0]), _array([0, 1e-9])).agrees

    def test_figures(self) -> None:
        difference = _one(_array([3.0, 4.0]), _array([3.0, 4.5]))
        assert not difference.agrees
        assert difference.max_abs == pytest.approx(0.5)
        assert difference.max_scaled == pytest.approx(0.125)
        assert difference.snr_db == pytest.approx(20.0)
        assert difference.cosine == pytest.approx(27 / (5 * math.hypot(3, 4.5)))
        assert "0.5" in difference.reason
        same = _one(_array([3.0]), _array([3.0]))
        assert (same.max_abs, same.snr_db, same.cosine) == (0.0, math.inf, 1.0)

    @pytest.mark.parametrize(
        ("expected", "actual", "agrees"),
        [
            ([math.nan, 1], [math.nan, 1], True),
            ([math.inf, 1], [math.inf, 1], True),
            ([math.inf, 1], [-math.inf, 1], False),
            ([math.nan, 1], [math.inf, 1], False),
            ([math.nan, 1], [0, 1], False),
            ([0, 1], [math.nan, 1], False),
            ([math.nan, 1], [math.nan, 2], False),
            ([math.nan], [math.nan], True),
        ],
    )
    def test_nan_and_infinity(
        self, expected: list[float], actual: list[float], agrees: bool
    ) -> None:
        assert _one(_array(expected), _array(actual)).agrees is agrees

    def test_complex(self) -> None:
        one = _array([1 + 2j], np.complex64)
        assert _one(one, one).agrees
        assert not _one(one, _array([1 - 2j], np.complex64)).agrees

    def test_empty(self) -> None:
        assert _one(_array([]), _array([])).agrees

    @given(st.lists(st.floats(width=32), min_size=1, max_size=20))
    def test_everything_agrees_with_itself(self, values: list[float]) -> None:
        difference = _one(_array(values), _array(values))
        assert difference.agrees
        assert difference.max_abs == 0


class TestOthers:
    @pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
    def test_integers_must_be_equal(self, dtype: type) -> None:
        assert _one(_array([1, 0, 1], dtype), _array([1, 0, 1], dtype)).agrees
        difference = _one(_array([1, 0, 1], dtype), _array([1, 1, 1], dtype))
        assert not difference.agrees
        assert "1 of 3 elements differ" in difference.reason

    def test_strings(self) -> None:
        assert _one(np.array(["a"], object), np.array(["a"], object)).agrees
        assert not _one(np.array(["a"], object), np.array(["b"], object)).agrees

    def test_types_and_shapes(self) -> None:
        assert "type float32 became float64" in _one(_array([1]), _array([1], float)).reason
        assert "shape [1] became [1, 1]" in _one(_array([1]), _array([[1]])).reason
        assert "shape [] became [1]" in _one(_array(1), _array([1])).reason

    @pytest.mark.parametrize(
        ("expected", "actual", "agrees"),
        [
            ([_array([1]), _array([2])], [_array([1]), _array([2])], [True, True]),
            ([_array([1])], [_array([1]), _array([2])], [False]),
            ([_array([1])], _array([1]), [False]),
            ([], [], []),
            ({"a": _array([1])}, {"a": _array([2])}, [False]),
            ({"a": _array([1])}, {"b": _array([1])}, [False]),
            (None, None, []),
            (None, _array([1]), [False]),
        ],
    )
    def test_sequences_maps_and_optionals(
        self, expected: Any, actual: Any, agrees: list[bool]
    ) -> None:
        differences = compare([expected], [actual], ["y"])
        assert [each.agrees for each in differences] == agrees

    def test_number_of_outputs(self) -> None:
        [difference] = compare([_array([1])], [], ["y"])
        assert not difference.agrees

    def test_worst(self) -> None:
        differences = [
            Difference("good", True, snr_db=90),
            Difference("noisy", True, own_noise=True, snr_db=5),
            Difference("fair", True, snr_db=40),
        ]
        assert worst(differences) is differences[2]
        wrong = Difference("wrong", False, snr_db=80)
        assert worst([*differences, wrong]) is wrong
        assert worst([]) is None


class TestStatistics:
    def test_latency(self) -> None:
        summary = latency([float(number) for number in range(1, 102)])
        assert (summary.median, summary.low, summary.high, summary.rounds) == (51, 11, 91, 101)

    @pytest.mark.parametrize("count", [6, 11, 25, 101])
    def test_the_interval_covers_the_median(self, count: int) -> None:
        """At least 95 % of intervals hold the true median of the ratio (here 1.25)."""
        generator = np.random.default_rng(count)
        held, trials = 0, 1000
        for _ in range(trials):
            ratios = 1.25 * np.exp(generator.standard_normal(count) * 0.2)
            measured = ratio(ratios.tolist(), [1.0] * count)
            held += measured.low <= 1.25 <= measured.high
        # Three standard errors of a binomial share below 95 %.
        assert held / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)

    @pytest.mark.parametrize("count", [1, 2, 3, 5])
    def test_few_rounds_give_the_whole_range(self, count: int) -> None:
        measured = ratio([float(number + 1) for number in range(count)], [1.0] * count)
        assert (measured.low, measured.high) == (1, count)

    @pytest.mark.parametrize(
        ("values", "noise", "slower", "faster"),
        [
            ([0.99, 1.0, 1.01], True, False, False),
            ([0.5, 1.0, 2.0], True, False, False),
            ([1.10, 1.11, 1.12], False, False, True),
            ([0.88, 0.9, 0.91], False, True, False),
            ([1.01, 1.01, 1.01], True, False, False),
        ],
    )
    def test_words(self, values: list[float], noise: bool, slower: bool, faster: bool) -> None:
        measured = ratio(values, [1.0] * len(values))
        assert (measured.is_noise, measured.is_slower, measured.is_faster) == (
            noise,
            slower,
            faster,
        )
