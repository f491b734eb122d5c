"""Layers in integers come out nearer to the float layer, whatever their layout."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.calibration import Gram, GramObserver, Rows, RowsObserver
from onnxopt.calibration.activation import Activation
from onnxopt.calibration.lots import lot_of
from onnxopt.calibration.recovery import corrected_bias, recovered_integers
from onnxopt.numerics.grids import UINT8, grid_over
from onnxopt.numerics.layer_inputs import ConvolutionInput, LayerInput, ProductInput
from onnxopt.numerics.weight_scales import absmax_scales

Array = np.ndarray

_CONVOLUTION = ConvolutionInput((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), groups=2)
_DEPTHWISE = ConvolutionInput((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), groups=8)
_CASES = {
    "matmul": (ProductInput(), (8, 12)),
    "gemm": (ProductInput(weights_transposed=True), (12, 8)),
    "grouped": (_CONVOLUTION, (6, 4, 3, 3)),
    "depthwise": (_DEPTHWISE, (16, 1, 3, 3)),
}


def _inputs(layer: LayerInput, seed: int) -> Array:
    """Smooth, positive inputs, as rectified activations are."""
    generator = np.random.default_rng(seed)
    shape = (2, 8, 12, 12) if isinstance(layer, ConvolutionInput) else (60, 8)
    noise = generator.standard_normal(shape)
    return np.maximum(noise + generator.standard_normal((shape[0], 1, *shape[2:])), 0).astype("f4")


def _observed(layer: LayerInput) -> tuple[GramObserver, RowsObserver]:
    gram, rows = Gram(layer).start(), Rows(layer).start()
    for seed in range(8):
        for observer in (gram, rows):
            observer.update(Activation(_inputs(layer, seed), lot_of(seed)))
    return gram, rows


def _outputs(layer: LayerInput, inputs: Array, weights: Array) -> Array:
    return layer.rows(inputs) @ layer.matrix(weights)


def _scaled(layer: LayerInput, integers: Array, scales: Array) -> Array:
    matrix = layer.matrix(integers.astype(np.float32))
    wide = matrix * scales.reshape(len(matrix), 1, -1)
    return layer.weights(wide.astype(np.float32), integers.shape)


@pytest.mark.parametrize("case", _CASES)
def test_outputs_of_other_inputs_are_nearer(case: str) -> None:
    layer, shape = _CASES[case]
    weights = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    matrix = layer.matrix(weights)
    scales = absmax_scales(matrix, 15).reshape(-1)
    start = np.rint(matrix / scales.reshape(len(matrix), 1, -1)).astype(np.int8)
    integers = layer.weights(start, shape)
    gram, rows = _observed(layer)
    inputs = _inputs(layer, 99)
    grid = grid_over(0, float(inputs.max()), UINT8)
    wanted = _outputs(layer, inputs, weights)

    def error(chosen: Array, bias: Array) -> float:
        quantized = _scaled(layer, chosen, scales)
        actual = _outputs(layer, grid.round(inputs), quantized)
        return float(np.square(actual + bias.reshape(len(matrix), 1, -1) - wanted).mean())

    none = np.zeros(scales.shape, np.float32)
    better = recovered_integers(weights, integers, scales, layer, gram, grid=grid)
    assert better.dtype == integers.dtype
    assert better.shape == integers.shape
    assert error(better, none) < 0.9 * error(integers, none)
    for each in (integers, better):
        quantized = _scaled(layer, each, scales)
        bias = corrected_bias(None, weights, quantized, layer, gram, rows, grid)
        assert error(each, bias) < error(each, none)


def test_pairs_keep_their_limit() -> None:
    generator = np.random.default_rng(2)
    weights = generator.uniform(0.5, 1.0, (6, 4, 3, 3)).astype(np.float32)
    layer = _CONVOLUTION
    scales = np.full(6, 1 / 127, np.float32)
    order = np.arange(36).reshape(4, 9).T.reshape(-1)
    integers = np.full(weights.shape, 64, np.int8)
    gram, _ = _observed(layer)
    found = recovered_integers(
        weights, integers, scales, layer, gram, orders=[order], pair_limit=128
    )
    columns = layer.matrix(found)[:, order].astype(int)
    assert (np.abs(columns[:, 0::2] + columns[:, 1::2]) <= 128).all()
    assert (found != integers).any()


def test_a_bias_moves_by_what_clipping_takes_away() -> None:
    layer = ProductInput()
    rows, gram = Rows(layer).start(), Gram(layer).start()
    for observer in (rows, gram):
        observer.update(Activation(np.full((10, 2), 3.0, np.float32), lot_of(0)))
    weights = np.array([[1.0], [2.0]], np.float32)
    bias = np.array([5.0], np.float32)
    grid = grid_over(0, 2, UINT8)
    moved = corrected_bias(bias, weights, weights, layer, gram, rows, grid)
    np.testing.assert_allclose(moved, [5 + 1 + 2], rtol=1e-6)
    np.testing.assert_array_equal(corrected_bias(bias, weights, weights, layer, gram), bias)


def test_nothing_seen_changes_nothing() -> None:
    layer = ProductInput()
    weights = np.ones((3, 2), np.float32)
    integers = np.ones((3, 2), np.int8)
    gram = Gram(layer).start()
    found = recovered_integers(weights, integers, np.ones(2, np.float32), layer, gram)
    np.testing.assert_array_equal(found, integers)
    np.testing.assert_array_equal(corrected_bias(None, weights, weights, layer, gram), [0, 0])
