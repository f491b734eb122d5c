"""Scale and zero point."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnxopt.passes.quantize.parameters import before_affine, for_range

_FLOATS = st.floats(-1e6, 1e6, width=32)


@given(_FLOATS, _FLOATS, st.booleans())
def test_a_range_and_zero_are_covered(low: float, high: float, signed: bool) -> None:
    low, high = min(low, high), max(low, high)
    found = for_range(low, high, signed)
    assert found.low <= min(low, 0) + found.scale / 2 * 1.001
    assert found.high >= max(high, 0) - found.scale / 2 * 1.001
    least = -128 if signed else 0
    assert least <= found.zero_point <= least + 255


@given(st.floats(-1, 0), st.floats(0, 8), st.booleans())
def test_saturation_stays_within_the_bounds_of_a_clamp(low: float, high: float, s: bool) -> None:
    found = for_range(low, high, s, (-0.5, 6.0))
    assert found.low >= -0.5 - 1e-6
    assert found.high <= 6.0 + 1e-5


def test_relu_has_all_its_steps_above_zero() -> None:
    found = for_range(-3.0, 2.55, bounds=(0.0, math.inf))
    assert (found.zero_point, found.low) == (0, 0)
    assert found.high == pytest.approx(2.55)


@given(st.floats(0.01, 100), st.floats(-3, 3), st.floats(-4, 0), st.floats(0.1, 4))
def test_both_sides_of_an_affine_step_share_their_numbers(
    factor: float, summand: float, low: float, high: float
) -> None:
    wanted = for_range(min(low, summand), max(high, summand))
    try:
        x, y = before_affine(wanted, factor, summand)
    except ValueError:
        return
    for number in (0, 17, 255):
        before, after = x.scale * (number - x.zero_point), y.scale * (number - y.zero_point)
        assert factor * before + summand == pytest.approx(after, abs=y.scale * 0.501)
    assert y.scale >= wanted.scale * 0.999
