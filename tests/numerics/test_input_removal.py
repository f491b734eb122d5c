"""Removing inputs of a linear layer, against least squares on the rows themselves."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from onnxopt.numerics.input_removal import Moments, costs_of_removal, refit, removal_order

Array = np.ndarray[Any, Any]


def rows(count: int = 400, width: int = 8, seed: int = 0) -> Array:
    """Rows whose columns go together, with means that are not 0."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, 3)) @ rng.standard_normal((3, width))
    return mixed + 0.3 * rng.standard_normal((count, width)) + rng.standard_normal(width)


def moments(data: Array, *, centred: bool) -> Moments:
    return Moments.of(data.T @ data, data.sum(axis=0), len(data), centred=centred)


def weights(width: int = 8, outputs: int = 5) -> Array:
    return np.random.default_rng(7).standard_normal((width, outputs))


@pytest.mark.parametrize("centred", [True, False])
def test_refit_is_least_squares(centred: bool) -> None:
    data, before = rows(), weights()
    keep = np.array([1, 0, 1, 1, 0, 1, 1, 1], np.bool_)
    found = refit(before, moments(data, centred=centred), keep, damping=0.0)
    given = np.column_stack([data[:, keep], *([np.ones(len(data))] if centred else [])])
    solution, *_ = np.linalg.lstsq(given, data @ before, rcond=None)
    np.testing.assert_allclose(found.weights[keep], solution[: keep.sum()], atol=1e-9)
    assert not found.weights[~keep].any()
    expected = solution[-1] if centred else np.zeros(5)
    np.testing.assert_allclose(found.shift, expected, atol=1e-9)


def test_nothing_left_is_the_mean() -> None:
    data, before = rows(), weights()
    found = refit(before, moments(data, centred=True), np.zeros(8, np.bool_))
    np.testing.assert_allclose(found.shift, (data @ before).mean(axis=0), atol=1e-9)


def test_costs_are_the_energy_of_what_goes() -> None:
    data, before = rows(), weights()
    units = np.array([0, 0, 1, 1, 2, 2, -1, -1])
    costs = costs_of_removal(before, moments(data, centred=False), units)
    for unit in range(3):
        part = data[:, units == unit] @ before[units == unit]
        np.testing.assert_allclose(costs[unit], np.square(part).sum() / len(data))


@pytest.mark.parametrize("taps", [1, 2])
def test_order_and_errors(taps: int) -> None:
    data, before = rows(width=8), weights()
    units = np.arange(8) // taps
    given = moments(data, centred=True)
    order, errors = removal_order([(before, given, units)], np.arange(8 // taps), 3, 0.0)
    assert len(order) == len(set(order)) == 3
    energy = given.output_energy(before)
    for count in range(1, 4):
        keep = ~np.isin(units, order[:count])
        found = refit(before, given, keep, damping=0.0)
        off = data @ (before - found.weights) - found.shift
        error = np.square(off).sum() / len(data) / energy
        np.testing.assert_allclose(errors[count - 1], error, rtol=1e-6)
    # The first to go is the best of all.
    alone = []
    for unit in range(8 // taps):
        found = refit(before, given, units != unit, damping=0.0)
        alone.append(np.square(data @ (before - found.weights) - found.shift).sum())
    assert order[0] == int(np.argmin(alone))


def test_two_layers_that_read_the_same_units() -> None:
    data, other = rows(), rows(seed=3)
    layers = [
        (weights(), moments(data, centred=True), np.arange(8)),
        (weights() * 100, moments(other, centred=True), np.arange(8)),
    ]
    order, errors = removal_order(layers, np.array([1, 4, 6]), 3)
    assert sorted(order) == [1, 4, 6]
    assert all(one <= other for one, other in itertools.pairwise(errors))
