"""What dropping weights does to a layer's outputs, on made-up inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnxopt.passes.sparsify.criteria import lamp, magnitude, output_error, wanda
from onnxopt.passes.sparsify.layers import Layout
from onnxopt.passes.sparsify.patterns import parse_pattern
from onnxopt.passes.sparsify.reconstruction import damped, refit, sweep

Array = np.ndarray[Any, Any]


def case(groups: int = 1, rows: int = 24, columns: int = 32) -> tuple[Array, Array, Layout]:
    """Weights, and the Gram matrix of inputs that go together."""
    rng = np.random.default_rng(columns)
    weight = rng.standard_normal((groups, rows, columns))
    mixing = rng.standard_normal((groups, columns, columns)) / np.sqrt(columns)
    inputs = rng.standard_normal((groups, 500, columns)) @ mixing * (1 + 4 * rng.random(columns))
    gram = inputs.transpose(0, 2, 1) @ inputs
    layout = Layout((groups, rows, columns), (0, 1, 2), groups, columns, (columns, 1))
    return weight, gram, layout


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x2"])
def test_each_step_loses_less(groups: int, pattern: str) -> None:
    weight, gram, layout = case(groups)
    wanted = parse_pattern(pattern)
    keep = wanted.keep(magnitude(weight), layout, 0.5)
    plain = np.where(keep, weight, 0)
    swept = sweep(weight, damped(gram, 0.01), wanted, layout, 0.5)
    fitted = refit(weight, swept, damped(gram, 0.01), 50)
    errors = [output_error(weight, each, gram) for each in (plain, swept, fitted)]
    assert errors[0] > 1.1 * errors[1] > 1.1 * errors[2] > 0
    for each in (swept, fitted):
        assert np.mean(each == 0) == pytest.approx(0.5, abs=0.01)
    np.testing.assert_array_equal(swept == 0, fitted == 0)
    if pattern == "2:4":
        assert np.all(np.count_nonzero(fitted.reshape(-1, 4), axis=1) == 2)


def test_refit_is_least_squares_on_what_is_left() -> None:
    weight, gram, _ = case(columns=16)
    keep: Array = np.asarray(np.random.default_rng(1).integers(0, 2, weight.shape), np.bool_)
    fitted = refit(weight, np.where(keep, weight, 0), gram, 200)
    for row in range(weight.shape[1]):
        left = np.flatnonzero(keep[0, row])
        wanted = np.linalg.solve(gram[0][np.ix_(left, left)], (gram[0] @ weight[0, row])[left])
        np.testing.assert_allclose(fitted[0, row, left], wanted, rtol=1e-3, atol=1e-4)


def test_rounding_is_part_of_the_sweep() -> None:
    weight, gram, layout = case()
    step = 0.25

    def nearest(values: Array, column: int) -> Array:
        return np.clip(np.rint(values / step), -8, 7) * step

    gram = damped(gram, 0.01)
    swept = sweep(weight, gram, parse_pattern("unstructured"), layout, 0.5, nearest)
    np.testing.assert_array_equal(swept, np.rint(swept / step) * step)
    rounded = np.clip(np.rint(weight / step), -8, 7) * step
    keep = parse_pattern("unstructured").keep(magnitude(rounded), layout, 0.5)
    plain = np.where(keep, rounded, 0)
    assert output_error(weight, swept, gram) < 0.9 * output_error(weight, plain, gram)


def test_inputs_that_were_never_there() -> None:
    weight, _, layout = case()
    gram = damped(np.zeros((1, 32, 32)), 0.01)
    swept = sweep(weight, gram, parse_pattern("unstructured"), layout, 0.5)
    assert np.isfinite(swept).all()
    assert np.isfinite(refit(weight, swept, gram, 10)).all()
    assert output_error(weight, swept, np.zeros((1, 32, 32))) == 0.0


def test_wanda_weighs_by_the_norm_of_the_input() -> None:
    weight = np.array([[[3.0, -1.0], [0.5, 2.0]]])
    gram = np.array([[[4.0, 1.0], [1.0, 100.0]]])
    np.testing.assert_allclose(wanda(weight, gram), [[[6, 10], [1, 20]]])


def test_lamp_as_the_paper_has_it() -> None:
    weight = np.array([2.0, -1.0, 3.0])
    np.testing.assert_allclose(lamp(weight), [4 / 13, 1 / 14, 1.0])


def test_output_error_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(0)
    inputs, weight = rng.standard_normal((200, 8)), rng.standard_normal((1, 5, 8))
    other = weight + 0.1 * rng.standard_normal(weight.shape)
    before, after = inputs @ weight[0].T, inputs @ other[0].T
    expected = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert output_error(weight, other, (inputs.T @ inputs)[None]) == pytest.approx(expected)


def test_by_row_each_row_keeps_as_many() -> None:
    weight, gram, layout = case()
    keep = parse_pattern("unstructured").keep(wanda(weight, gram), layout, 0.75, by_row=True)
    assert np.all(np.count_nonzero(keep, axis=-1) == 8)
