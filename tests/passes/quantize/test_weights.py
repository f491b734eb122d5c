"""8-bit weights: scales, and pairs that a kernel adds up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnxopt.passes.quantize.weights import (
    least_scales,
    pairs_are_safe,
    quantize_bias,
    quantize_weights,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "axis"), [((7, 5), 1), ((6, 4, 3, 3), 0), ((6, 3, 5), 0), ((6, 1, 3, 3), 0)]
)
def test_weights_are_off_by_half_a_step_at_most(shape: tuple[int, ...], axis: int) -> None:
    weights = RNG.standard_normal(shape).astype(np.float32)
    found = quantize_weights(weights, axis, None)
    steps = [1] * len(shape)
    steps[axis] = -1
    half = found.scales.reshape(steps) * 0.5001
    assert (np.abs(found.dequantized() - weights) <= half).all()
    assert found.scales.shape == (shape[axis],)


def test_a_channel_of_zeros_has_a_scale() -> None:
    found = quantize_weights(np.zeros((3, 2), np.float32), 1, 128)
    assert (found.scales > 0).all()
    assert not found.numbers.any()


@pytest.mark.parametrize("tiny", [1e-30, 1e-38, 1e-44])
def test_a_channel_next_to_zero_counts_as_zeros(tiny: float) -> None:
    """Training switches channels off; folding a normalization into them leaves such weights."""
    weights = np.array([[1.0, tiny], [-0.5, -tiny]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        found = quantize_weights(weights, 1, None)
        bias, scales = quantize_bias(np.array([0.5, 0], np.float32), 1e-6, found)
    assert (scales > np.finfo(np.float32).tiny).all()
    assert found.numbers[:, 0].tolist() == [127, -64]
    assert not found.numbers[:, 1].any()
    assert bias[1] == 0


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((8, 5), 1), ((7, 5), 1), ((6, 4, 1, 1), 0), ((6, 3, 3, 3), 0), ((6, 5, 3), 0)],
)
def test_pair_safe_weights_never_add_up_to_more_than_the_limit(
    shape: tuple[int, ...], axis: int
) -> None:
    """The arithmetic: 255 * 128 < 2^15 is all that the 16-bit sums of two products hold."""
    assert np.iinfo(np.int16).max >= 255 * 128
    weights = RNG.uniform(0.8, 1, shape).astype(np.float32)  # every pair offends at 8 bits
    plain = quantize_weights(weights, axis, None)
    safe = quantize_weights(weights, axis, 128)
    assert not pairs_are_safe(plain.numbers, axis)
    assert pairs_are_safe(safe.numbers, axis)


def test_pair_safe_weights_lose_less_than_a_bit() -> None:
    weights = RNG.standard_normal((256, 64)).astype(np.float32)
    seven = quantize_weights(weights, 1, None, np.abs(weights).max(axis=0) / 63)
    safe = quantize_weights(weights, 1, 128)
    error = [np.square(each.dequantized() - weights).mean() for each in (seven, safe)]
    assert error[1] < error[0] / 1.8


def test_depthwise_weights_have_no_pairs() -> None:
    weights = np.ones((4, 1, 3, 3), np.float32)
    assert (quantize_weights(weights, 0, 128, groups=4).numbers == 127).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_kernel_positions_of_one_channel_are_pairs_unless_each_has_its_own(groups: int) -> None:
    """A first layer that reads grey images, and several outputs a group, are no depthwise ones."""
    weights = np.ones((4, 1, 3, 3), np.float32)
    assert not pairs_are_safe(np.full(weights.shape, 127, np.int8), 0, groups)
    safe = quantize_weights(weights, 0, 128, groups=groups)
    assert pairs_are_safe(safe.numbers, 0, groups)
    assert safe.numbers.max() < 127


def test_pairs_of_a_convolution_are_neighbouring_channels() -> None:
    numbers = np.zeros((1, 2, 2), np.int8)
    numbers[0, 0] = 127  # both positions of one channel
    assert pairs_are_safe(numbers, 0)
    assert not pairs_are_safe(numbers.swapaxes(1, 2), 0)


@given(st.lists(st.integers(-127, 127), min_size=2, max_size=40))
def test_any_row_becomes_safe(row: list[int]) -> None:
    weights = np.array(row, np.float32)[:, None]
    safe = quantize_weights(weights, 1, 128)
    pairs = safe.numbers[: len(row) // 2 * 2, 0].astype(int).reshape(-1, 2)
    # The worst that activations of 0 to 255 can make of each pair.
    assert (255 * np.maximum(pairs, 0).sum(axis=1) <= 32767).all()
    assert (255 * np.minimum(pairs, 0).sum(axis=1) >= -32768).all()


def test_a_bias_stands_at_exactly_the_product_of_scales() -> None:
    weights = quantize_weights(RNG.standard_normal((4, 3)).astype(np.float32), 1, None)
    numbers, scales = quantize_bias(np.array([1, -2, 3], np.float32), 0.25, weights)
    assert numbers.dtype == np.int32
    np.testing.assert_array_equal(scales, np.float32(0.25) * weights.scales)
    np.testing.assert_allclose(numbers * scales, [1, -2, 3], atol=float(scales.max()))


def test_a_bias_of_a_channel_that_is_all_but_off_still_fits() -> None:
    weights = np.array([[1e-15, 0.5], [2e-15, -0.25]], np.float32)
    bias = np.array([3.0, -2.0], np.float32)
    plain = quantize_weights(weights, 1, None)
    numbers, scales = quantize_bias(bias, 0.02, plain)
    assert abs(numbers[0] * scales[0] - 3.0) > 1  # what goes wrong without
    found = quantize_weights(weights, 1, None, least=least_scales(bias, 0.02))
    numbers, scales = quantize_bias(bias, 0.02, found)
    np.testing.assert_allclose(numbers * scales, bias, rtol=1e-4)
    assert found.scales[1] == plain.scales[1]
