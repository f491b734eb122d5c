"""What observers promise of any data: parts merge into the whole, and a file brings them back."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.calibration import (
    Channels,
    Gram,
    Histogram,
    HistogramObserver,
    Observer,
    ObserverSpec,
    Range,
    Rows,
    RowsObserver,
)
from onnxopt.calibration.activation import Activation, UnobservableError
from onnxopt.calibration.lots import DRAWN, Lots, bound_of, lot_of
from onnxopt.calibration.watch import TensorWatch
from onnxopt.numerics.exact_sum import ExactSum
from onnxopt.numerics.layer_inputs import ProductInput

_FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
_MATRICES = arrays.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(4)), elements=_FLOATS)
_SPECS: list[ObserverSpec[Any]] = [
    Range(),
    Histogram(bins=16, most=5),
    Channels(-1),
    Rows(ProductInput(), most_bytes=32 * 3 * 16, per_sample=4),
]


def _see(spec: ObserverSpec[Any], samples: Sequence[np.ndarray], start: int = 0) -> Observer:
    observer: Observer = spec.start()
    for place, sample in enumerate(samples, start):
        observer.update(Activation(sample, lot_of(place)))
    return observer


def _assert_equal(one: Observer, other: Observer) -> None:
    theirs = other.arrays()
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(theirs[name], array, err_msg=name)


@pytest.mark.parametrize("spec", _SPECS, ids=lambda spec: spec.kind)
@settings(max_examples=40, deadline=None)
@given(samples=st.lists(_MATRICES, min_size=1, max_size=6), cut=st.integers(0, 6))
def test_parts_merge_into_the_whole_in_any_order(
    spec: ObserverSpec[Any], samples: list[np.ndarray], cut: int
) -> None:
    whole = _see(spec, samples)
    first, second = _see(spec, samples[:cut]), _see(spec, samples[cut:], cut)
    restored = spec.restore(second.arrays())
    first.merge(second)
    _assert_equal(first, whole)
    restored.merge(_see(spec, samples[:cut]))
    _assert_equal(restored, whole)


@settings(max_examples=40, deadline=None)
@given(samples=st.lists(_MATRICES, min_size=1, max_size=5), bins=st.sampled_from([2, 16, 512]))
def test_a_histogram_counts_what_numpy_counts(samples: list[np.ndarray], bins: int) -> None:
    observer = _see(Histogram(bins, 10**6), samples)
    assert isinstance(observer, HistogramObserver)
    together = np.concatenate([sample.reshape(-1) for sample in samples]).astype(np.float64)
    assert observer.total == together.size
    assert (observer.low, observer.high) == (together.min(), together.max())
    assert observer.zeros == np.count_nonzero(together == 0)
    if np.abs(together).max() > 0:
        assert bins / 2 <= np.abs(together).max() / observer.width < bins
        index = np.trunc(together / observer.width).astype(int) + bins
        np.testing.assert_array_equal(observer.counts, np.bincount(index, minlength=2 * bins))


def test_a_growing_range_keeps_all_counts() -> None:
    generator = np.random.default_rng(0)
    samples = [generator.standard_normal(1000) * 10.0**power for power in range(-20, 20, 3)]
    observer = _see(Histogram(2048, 10**6), [x.astype(np.float32) for x in samples])
    assert isinstance(observer, HistogramObserver)
    assert observer.total == 1000 * len(samples)
    _, density = observer.density()
    assert np.isfinite(density).all()


def test_a_histogram_of_a_large_tensor_counts_a_part_of_it_but_all_extremes() -> None:
    sample = np.ones((64, 56, 56), np.float32)
    sample[63, 55, 55], sample[0, 0, 1] = 100.0, -3.0
    observer = _see(Histogram(256, 1000), [sample])
    assert isinstance(observer, HistogramObserver)
    assert 500 < observer.total <= 1000
    assert (observer.low, observer.high) == (-3.0, 100.0)


@settings(max_examples=60, deadline=None)
@given(
    terms=arrays.arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
    )
)
def test_an_exact_sum_is_that_of_fractions(terms: np.ndarray) -> None:
    total = ExactSum(())
    for term in terms:
        total.add(term)
    assert float(total.value) == pytest.approx(math.fsum(map(float, terms)), rel=1e-15)


def test_gram_matrices_merge_to_rounding() -> None:
    generator = np.random.default_rng(1)
    samples = [generator.standard_normal((7, 5)).astype(np.float32) for _ in range(6)]
    spec = Gram(ProductInput())
    whole, first, second = _see(spec, samples), _see(spec, samples[:2]), _see(spec, samples[2:])
    first.merge(second)
    for name, array in whole.arrays().items():
        np.testing.assert_allclose(first.arrays()[name], array, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="different sizes"):
        first.merge(_see(spec, [np.ones((2, 3), np.float32)]))


def test_a_gram_matrix_that_is_too_wide_is_refused() -> None:
    with pytest.raises(UnobservableError, match="6 columns, over 5"):
        _see(Gram(ProductInput(), most_columns=5), [np.ones((2, 6), np.float32)])


def test_rows_stay_within_their_bytes() -> None:
    generator = np.random.default_rng(2)
    spec = Rows(ProductInput(), most_bytes=64 * 4 * (2 * DRAWN + 6), per_sample=16)
    samples = [generator.standard_normal((50, 64)).astype(np.float32) for _ in range(100)]
    observer = _see(spec, samples)
    assert isinstance(observer, RowsObserver)
    assert observer.seen == DRAWN
    assert observer.rows.shape == (2 * DRAWN, 1, 64)
    assert spec.bytes_of(64, 64) == observer.rows.nbytes <= spec.most_bytes
    known = {row.tobytes() for sample in samples for row in sample}
    assert all(row.tobytes() in known for row in observer.rows)
    assert len(observer.some(64 * 4 * 10)) == 10


@pytest.mark.parametrize("count", [0, 1, DRAWN, DRAWN + 1, 1000])
def test_the_same_samples_are_drawn_with_and_without_their_number(count: int) -> None:
    lots = [lot_of(place) for place in range(count)]
    expected = sorted(lots)[:DRAWN]
    known, unknown = Lots(bound_of(count)), Lots()
    drawn = [[each.draw(place) for place in range(count)] for each in (known, unknown)]
    assert sorted(lot for lot in drawn[0] if lot is not None) == expected
    assert set(expected) <= set(drawn[1])
    assert unknown.bound == known.bound
    if count == 1000:
        assert sum(lot is not None for lot in drawn[1]) < 250


def test_a_sample_in_which_the_tensor_is_empty_takes_the_place_of_another() -> None:
    sample = np.ones((1, 4), np.float32)
    watch, spec = TensorWatch([Rows(ProductInput())], False), Rows(ProductInput())
    for place in range(3 * DRAWN):
        assert watch.see(sample if place % 2 else sample[:0], lot_of(place)) is None
    watch.settle()
    observer = watch.observers[spec]
    assert isinstance(observer, RowsObserver)
    lots = sorted(lot_of(place) for place in range(3 * DRAWN))[:DRAWN]
    odd = {lot_of(place) for place in range(1, 3 * DRAWN, 2)}
    assert observer.seen == len(odd & set(lots)) < DRAWN
    again = spec.restore(observer.arrays())
    _assert_equal(again, observer)
    np.testing.assert_array_equal(again.rows, observer.rows)


def test_rows_of_two_passes_merge_in_either_order() -> None:
    generator = np.random.default_rng(4)
    spec = Rows(ProductInput())
    samples = [generator.standard_normal((3, 4)).astype(np.float32) for _ in range(40)]
    passes = [_see(spec, samples[:20]), _see(spec, samples[20:])]
    other = [spec.restore(each.arrays()) for each in passes]
    passes[0].merge(passes[1])
    other[1].merge(other[0])
    _assert_equal(passes[0], other[1])


def test_small_floats_are_seen_as_float32() -> None:
    activation = Activation(np.array([1.5, -2.0], np.float16))
    assert activation.values.dtype == np.float32
    assert activation.extremes == (-2.0, 1.5)
    with pytest.raises(UnobservableError, match="no floating-point"):
        Activation(np.array([1, 2]))


def test_what_travels_to_the_child_does_not_load_onnx() -> None:
    code = (
        "import pickle, sys; pickle.loads(sys.stdin.buffer.read()); "
        "sys.exit('onnx_ir' in sys.modules or 'onnx' in sys.modules)"
    )
    watches = pickle.dumps(TensorWatch([*_SPECS, Gram(ProductInput())], False))
    subprocess.run([sys.executable, "-c", code], input=watches, check=True)
