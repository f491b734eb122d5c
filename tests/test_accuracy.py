"""What is measured of a lossy result, and what a budget objects to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from onnxopt.accuracy import Agreement, Budget, fidelity
from onnxopt.errors import OptionError


def _compare(one: list[Any], other: list[Any]) -> Any:
    (found,) = fidelity([[x] for x in one], [[y] for y in other], ["y"]).outputs
    return found


def test_noise_is_taken_over_all_samples() -> None:
    one = [np.array([[3.0, 0.0]], np.float32), np.array([[0.0, 4.0]], np.float32)]
    other = [np.array([[3.0, 0.5]], np.float32), np.array([[0.0, 4.0]], np.float32)]
    found = _compare(one, other)
    assert found.sqnr_db == pytest.approx(10 * math.log10(25 / 0.25))
    assert found.worst_cosine == pytest.approx(3 / math.hypot(3, 0.5))
    assert found.cosine == pytest.approx((1 + 3 / math.hypot(3, 0.5)) / 2)


def test_equal_outputs_have_no_noise() -> None:
    array = np.array([[0.0, 0.0]], np.float32)
    found = _compare([array], [array])
    assert found.sqnr_db == math.inf
    assert found.cosine == 1.0


def test_silence_that_becomes_sound_is_all_noise() -> None:
    found = _compare([np.zeros((1, 2), np.float32)], [np.ones((1, 2), np.float32)])
    assert found.sqnr_db == -math.inf
    assert Budget().objection(fidelity([[np.zeros(2)]], [[np.ones(2)]], ["y"])) is not None


def test_masked_places_do_not_drown_the_noise_of_the_others() -> None:
    one = np.array([[-1e9, 3.0, 4.0, -1e9]], np.float32)
    other = one + np.array([[0.0, 0.5, 0.0, 0.0]], np.float32)
    found = _compare([one], [other])
    assert found.sqnr_db == pytest.approx(10 * math.log10(25 / 0.25))
    assert found.cosine == pytest.approx((3 * 3.5 + 16) / (5 * math.hypot(3.5, 4)))


def test_infinity_of_the_other_sign_is_another_answer() -> None:
    one, other = (np.array([[sign * np.inf, 1.0]], np.float32) for sign in (1, -1))
    assert not _compare([one], [one]).mismatch
    assert "infinite where the original is not" in _compare([one], [other]).mismatch


def test_logits_decide_by_the_largest() -> None:
    one = [np.array([[1.0, 3.0, 2.0, 0.0, -1.0]], np.float32)] * 4
    other = [*one[:3], np.array([[4.0, 3.0, 2.0, 0.0, -1.0]], np.float32)]
    agreement = _compare(one, other).agreement
    assert agreement == Agreement("top-1", 3, 4)


def test_probabilities_decide_along_the_axis_that_adds_up_to_one() -> None:
    generator = np.random.default_rng(0)
    map_of = np.exp(generator.standard_normal((1, 4, 3, 5)))
    one = (map_of / map_of.sum(axis=1, keepdims=True)).astype(np.float32)
    other = one.copy()
    other[0, :, 0, 0] = one[0, :, 0, 0][::-1]
    agreement = _compare([one], [other]).agreement
    assert agreement == Agreement("top-1", 14, 15)


def test_scores_decide_by_a_threshold() -> None:
    one = np.array([[[0.2, 0.9], [0.4, 0.6]]], np.float32)
    other = np.array([[[0.2, 0.9], [0.55, 0.6]]], np.float32)
    assert _compare([one], [other]).agreement == Agreement("threshold", 3, 4)


def test_whole_numbers_and_texts_are_equal_or_not() -> None:
    found = _compare([np.array([1, 2, 3])], [np.array([1, 2, 4])])
    assert found.agreement == Agreement("equal", 2, 3)
    assert found.sqnr_db == math.inf
    assert _compare([np.array(["a"])], [np.array(["b"])]).agreement == Agreement("equal", 0, 1)


def test_a_few_unbounded_numbers_are_not_called_decisions() -> None:
    """Three measures of speech look like the scores of three classes."""
    rows = [np.array([[3.5, 4.1, 3.2]], np.float32), np.array([[2.5, 1.1, -3.2]], np.float32)]
    (few,) = fidelity([[row] for row in rows], [[row] for row in rows], ["y"]).outputs
    assert few.agreement is not None
    assert few.agreement.noun == "largest scores"
    wide = [np.concatenate([row, row - 9], axis=1) for row in rows]
    (many,) = fidelity([[row] for row in wide], [[row] for row in wide], ["y"]).outputs
    assert many.agreement is not None
    assert many.agreement.noun == "decisions"
    flipped = [[row[:, ::-1]] for row in rows]
    (turned,) = fidelity([[row] for row in rows], flipped, ["y"]).outputs
    assert turned.agreement is not None
    assert turned.agreement.same == 1


def test_normalized_embeddings_and_feature_maps_are_no_decisions() -> None:
    generator = np.random.default_rng(0)
    embedding = generator.standard_normal((2, 8))
    embedding = (embedding / np.linalg.norm(embedding, axis=1, keepdims=True)).astype(np.float32)
    assert _compare([embedding], [embedding]).agreement is None
    tokens = generator.standard_normal((1, 5, 8)).astype(np.float32)
    assert _compare([tokens], [tokens]).agreement is None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (np.zeros((1, 3), np.float32), "shape"),
        (np.zeros((1, 2), np.float64), "float64"),
        (np.array([[np.nan, 1]], np.float32), "NaN"),
    ],
)
def test_what_cannot_be_compared_is_over_any_budget(other: Any, words: str) -> None:
    found = fidelity([[np.ones((1, 2), np.float32)]], [[other]], ["y"])
    message = Budget(min_sqnr=None, min_agreement=None).objection(found)
    assert message is not None
    assert words in message


def test_sequences_and_absent_values_are_compared_by_element() -> None:
    one = [np.ones(2, np.float32), np.zeros(3, np.float32)]
    assert _compare([one], [one]).sqnr_db == math.inf
    assert "elements" in _compare([one], [one[:1]]).mismatch
    assert _compare([None], [None]).sqnr_db == math.inf


def test_the_interval_is_wilsons() -> None:
    low, high = Agreement("top-1", 9, 10).interval
    assert low == pytest.approx(0.5958, abs=1e-3)
    assert high == pytest.approx(0.9821, abs=1e-3)
    assert Agreement("top-1", 0, 0).interval == (0.0, 1.0)


@pytest.mark.parametrize(
    ("same", "total", "short"),
    [
        (97, 100, False),
        (96, 100, True),  # one flip of a hundred is allowed, four are not
        (9, 10, False),  # ten samples prove nothing
        (2, 10, True),  # unless nearly all are wrong
    ],
)
def test_few_decisions_prove_nothing(same: int, total: int, short: bool) -> None:
    assert Agreement("top-1", same, total).falls_short_of(0.97) is short


def test_a_perfect_share_allows_no_flip() -> None:
    assert Agreement("top-1", 9, 10).falls_short_of(1.0)


@pytest.mark.parametrize("limits", [{"min_agreement": 1.5}, {"min_cosine": 2}, {"max_drop": -1}])
def test_a_budget_out_of_range_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(limits))):
        Budget(**limits)  # type: ignore[arg-type]
