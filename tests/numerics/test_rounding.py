"""Rounding by output error: never worse than to the nearest, and within all limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.numerics.gram import (
    damped,
    inverse_factor,
    output_error,
    refit,
)
from onnxopt.numerics.rounding import PairLimit, bias_shift, round_with_compensation
from onnxopt.numerics.weight_scales import absmax_scales, best_scales, round_to_nearest

Array = np.ndarray


def _layer(groups: int, inputs: int, outputs: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Weights, Gram matrix and mean row of inputs that go together and are not negative."""
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((groups, inputs, inputs))
    rows = np.maximum(generator.standard_normal((groups, 500, inputs)) @ mixing, 0)
    matrix = generator.standard_normal((groups, inputs, outputs)).astype(np.float32)
    return matrix, rows.transpose(0, 2, 1) @ rows / 500, rows.mean(axis=1)


def _same_sign_sums(integers: Array, pairs: PairLimit) -> int:
    worst = 0
    for partners in pairs.partners:
        some = np.flatnonzero(partners >= 0)
        one, two = integers[:, some].astype(int), integers[:, partners[some]].astype(int)
        worst = max(worst, int(np.abs(np.where(one * two > 0, one + two, 0)).max()))
    return worst


@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(1, 200, 7), (30, 9, 1), (3, 10, 4)])
def test_the_outputs_are_nearer_than_with_the_nearest_integers(
    groups: int, inputs: int, outputs: int
) -> None:
    matrix, gram, _ = _layer(groups, inputs, outputs)
    scales = absmax_scales(matrix, 7)
    nearest = round_to_nearest(matrix, scales, -7, 7)
    rounded = round_with_compensation(matrix, scales, gram, steps=7)
    assert np.abs(rounded).max() <= 7
    exact = damped(gram)
    before = output_error(exact, nearest * scales[:, None] - matrix)
    after = output_error(exact, rounded * scales[:, None] - matrix)
    assert (after <= before * (1 + 1e-9)).all()
    assert after.sum() < (0.5 if inputs > 100 else 0.9) * before.sum()


def test_descent_gets_no_further_away() -> None:
    matrix, gram, _ = _layer(2, 130, 5)
    scales = absmax_scales(matrix, 7)
    errors = []
    for sweeps in (0, 1, 3):
        rounded = round_with_compensation(matrix, scales, gram, steps=7, sweeps=sweeps)
        errors.append(output_error(damped(gram), rounded * scales[:, None] - matrix))
    assert (errors[1] <= errors[0] * (1 + 1e-9)).all()
    assert (errors[2] <= errors[1] * (1 + 1e-9)).all()
    assert errors[1].sum() < errors[0].sum()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), inputs=st.integers(1, 70), outputs=st.integers(1, 4))
def test_no_output_gets_worse(seed: int, inputs: int, outputs: int) -> None:
    matrix, gram, _ = _layer(2, inputs, outputs, seed)
    scales = absmax_scales(matrix)
    before = output_error(damped(gram), round_to_nearest(matrix, scales) * scales[:, None] - matrix)
    rounded = round_with_compensation(matrix, scales, gram)
    after = output_error(damped(gram), rounded * scales[:, None] - matrix)
    assert (after <= before * (1 + 1e-6) + 1e-20).all()


@pytest.mark.parametrize("inputs", [2, 9, 130])
def test_pairs_stay_within_their_limit(inputs: int) -> None:
    generator = np.random.default_rng(0)
    matrix, gram, _ = _layer(2, inputs, 5)
    orders = [np.arange(inputs), generator.permutation(inputs)]
    pairs = PairLimit.along(orders)
    scales = (absmax_scales(matrix) * np.float32(0.6)).astype(np.float32)  # many offend
    nearest = round_to_nearest(matrix, scales)
    assert _same_sign_sums(nearest, pairs) > 128
    rounded = round_with_compensation(matrix, scales, gram, pairs=pairs)
    assert _same_sign_sums(rounded, pairs) <= 128
    assert np.abs(rounded).max() <= 127


def test_inputs_that_were_never_active_do_no_harm() -> None:
    matrix, gram, _ = _layer(1, 12, 3)
    gram[:, 4], gram[:, :, 4] = 0, 0
    rounded = round_with_compensation(matrix, absmax_scales(matrix), gram)
    assert np.isfinite(rounded).all()
    silent = round_with_compensation(matrix, absmax_scales(matrix), np.zeros_like(gram))
    np.testing.assert_array_equal(silent, round_to_nearest(matrix, absmax_scales(matrix)))


def test_scales_by_the_output_are_no_worse_than_those_that_clip_nothing() -> None:
    matrix, gram, _ = _layer(4, 20, 6)
    matrix[0, 3, 2] = 40.0  # an outlier among the weights
    for judge in (None, gram):
        scales = best_scales(matrix, 7, judge)
        widest = absmax_scales(matrix, 7)
        assert (scales <= widest).all()
        plain = np.broadcast_to(np.eye(20), gram.shape) if judge is None else judge
        errors = [
            output_error(plain, round_to_nearest(matrix, each, -7, 7) * each[:, None] - matrix)
            for each in (scales, widest)
        ]
        assert (errors[0] <= errors[1] * (1 + 1e-9)).all()
        assert errors[0].sum() < errors[1].sum()


def test_weights_of_zeros_have_a_scale() -> None:
    for choose in (absmax_scales, best_scales):
        scales = choose(np.zeros((1, 3, 2), np.float32))
        np.testing.assert_array_equal(scales, 1)
        np.testing.assert_array_equal(round_to_nearest(np.zeros((1, 3, 2)), scales), 0)


def test_a_corrected_bias_keeps_the_mean_of_the_outputs() -> None:
    generator = np.random.default_rng(4)
    rows = generator.random((2, 50, 6))
    matrix = generator.standard_normal((2, 6, 3))
    changed = np.round(matrix, 1)
    shift = bias_shift(changed - matrix, rows.mean(axis=1))
    wanted = (rows @ matrix).mean(axis=1)
    np.testing.assert_allclose((rows @ changed).mean(axis=1) + shift, wanted)


def test_output_error_is_that_of_the_rows() -> None:
    generator = np.random.default_rng(4)
    rows = generator.standard_normal((2, 50, 6))
    change = generator.standard_normal((2, 6, 3))
    gram = rows.transpose(0, 2, 1) @ rows / 50
    np.testing.assert_allclose(
        output_error(gram, change), np.square(rows @ change).mean(axis=1), rtol=1e-10
    )


def test_the_inverse_factor_is_one() -> None:
    _, gram, _ = _layer(3, 8, 1)
    factor = inverse_factor(gram)
    np.testing.assert_allclose(np.tril(factor[1], -1), 0)
    product = factor.transpose(0, 2, 1) @ factor @ damped(gram)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(8), product.shape), atol=1e-8)


def test_a_refit_is_the_least_squares_solution() -> None:
    generator = np.random.default_rng(6)
    rows = generator.standard_normal((300, 3)) @ generator.standard_normal((3, 8))
    rows += 0.01 * generator.standard_normal(rows.shape)
    weights = generator.standard_normal((8, 4))
    kept = np.array([1, 0, 1, 1, 0, 1, 0, 1], bool)
    found = refit(rows.T @ rows / 300, weights, kept, share=1e-12)
    wanted = np.linalg.lstsq(rows[:, kept], rows @ weights, rcond=None)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(refit(rows.T @ rows, weights, np.ones(8, bool)), weights)
