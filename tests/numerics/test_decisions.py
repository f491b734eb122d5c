"""The estimate of flips, against flips that are counted over many decisions."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.numerics.decisions import expected_flips

_GENERATOR = np.random.default_rng(5)


def _scores(count: int) -> np.ndarray:
    scores = _GENERATOR.standard_normal((count, 10))
    scores[np.arange(count), _GENERATOR.integers(0, 10, count)] += 2.0
    return scores


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("probabilities", [False, True])
def test_few_decisions_foretell_many(noise: float, probabilities: bool) -> None:
    scores = _scores(20_000)
    changed = scores + noise * _GENERATOR.standard_normal(scores.shape)
    counted = float(np.mean(scores.argmax(axis=1) != changed.argmax(axis=1)))
    if probabilities:
        scores, changed = _softmax(scores), _softmax(changed)
    few = slice(0, 200)
    flips = expected_flips(list(scores[few, None]), list(changed[few, None]))
    assert flips is not None
    assert flips.share == pytest.approx(counted, abs=4 * flips.error + 0.01)
    all_of_them = expected_flips([scores], [changed])
    assert all_of_them is not None
    assert 0.9 * counted - 0.002 <= all_of_them.share <= 1.3 * counted + 0.002
    assert all_of_them.error < flips.error


def test_margins_of_other_samples_count_too() -> None:
    narrow, wide = _scores(300), np.eye(10).repeat(30, axis=0) * 100
    changed = narrow + 0.3 * _GENERATOR.standard_normal(narrow.shape)
    alone = expected_flips([narrow], [changed])
    among = expected_flips([narrow], [changed], others=[wide])
    assert alone is not None
    assert among is not None
    assert among.share == pytest.approx(alone.share / 2)


def test_no_noise_flips_nothing() -> None:
    scores = _scores(50)
    flips = expected_flips([scores], [scores])
    assert flips is not None
    assert flips.share == flips.error == 0


def test_wide_margins_do_not_flip_though_noise_is_there() -> None:
    scores = np.eye(10) * 100
    flips = expected_flips([scores], [scores + 0.1 * _GENERATOR.standard_normal((10, 10))])
    assert flips is not None
    assert flips.share == 0


def test_the_axis_says_where_the_choice_is() -> None:
    scores = _scores(60).reshape(2, 30, 10)
    changed = scores + 0.3 * _GENERATOR.standard_normal(scores.shape)
    turned = [array.transpose(0, 2, 1) for array in (scores, changed)]
    assert expected_flips([scores], [changed]) == expected_flips([turned[0]], [turned[1]], axis=1)


def test_what_is_no_choice_has_no_estimate() -> None:
    one = np.ones((4, 1))
    assert expected_flips([_scores(4)], [_scores(3)]) is None
    assert expected_flips([one], [one]) is None
    assert expected_flips([_scores(1)], [_scores(1)]) is None
    ragged = [_scores(2), _scores(2)[:, :5]]
    assert expected_flips(ragged, ragged) is None
