"""Rows times weights is what ONNX Runtime computes, for all kinds of layers."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from onnxopt.calibration import layer_input
from onnxopt.model import from_proto
from onnxopt.numerics.layer_inputs import ConvolutionInput, LayerInput, ProductInput, some_outputs
from tests.differential import run

FLOAT = onnx.TensorProto.FLOAT


def _single(op_type: str, weights: np.ndarray, **attributes: object) -> onnx.ModelProto:
    node = oh.make_node(op_type, ["x", "w"], ["y"], **attributes)
    graph = oh.make_graph(
        [node],
        "layer",
        [oh.make_tensor_value_info("x", FLOAT, None)],
        [oh.make_tensor_value_info("y", FLOAT, None)],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=8)


def _rows_times_weights(model: onnx.ModelProto, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    (node,) = from_proto(model).graph
    layer = layer_input(node)
    assert layer is not None
    matrix = layer.matrix(weights)
    np.testing.assert_array_equal(layer.weights(matrix, weights.shape), weights)
    return layer.rows(x) @ matrix


_SPATIAL = [
    ((7,), (3,), 1),
    ((9, 6), (3, 2), 1),
    ((8, 9), (1, 1), 2),
    ((5, 6, 6), (2, 3, 1), 4),
]


@pytest.mark.parametrize(("sizes", "kernel", "groups"), _SPATIAL, ids=str)
@pytest.mark.parametrize("auto_pad", ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
def test_convolutions(
    sizes: tuple[int, ...], kernel: tuple[int, ...], groups: int, auto_pad: str
) -> None:
    generator = np.random.default_rng(1)
    x = generator.standard_normal((2, 4, *sizes)).astype(np.float32)
    weights = generator.standard_normal((8, 4 // groups, *kernel)).astype(np.float32)
    axes = len(sizes)
    for strides, dilations in itertools.product((1, 2), (1, 2)):
        if dilations == 2 and auto_pad.startswith("SAME"):
            continue  # the runtime refuses some of these
        attributes: dict[str, object] = {"strides": [strides] * axes, "group": groups}
        attributes["dilations"] = [dilations] * axes
        if auto_pad == "NOTSET":
            attributes["pads"] = [1] * axes + [2] * axes
        else:
            attributes["auto_pad"] = auto_pad
        model = _single("Conv", weights, **attributes)
        expected = run(model, {"x": x})[0]
        product = _rows_times_weights(model, x, weights)  # [groups, R, M]
        places = product.reshape(groups, 2, *expected.shape[2:], 8 // groups)
        turned = np.moveaxis(places, -1, 1)  # [groups, M, N, ...]
        actual = np.moveaxis(turned.reshape(8, 2, *expected.shape[2:]), 1, 0)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(trans_a: int, trans_b: int) -> None:
    generator = np.random.default_rng(2)
    x = generator.standard_normal((5, 3)).astype(np.float32)
    weights = generator.standard_normal((3, 4)).astype(np.float32)
    weights = np.ascontiguousarray(weights.T) if trans_b else weights
    x = np.ascontiguousarray(x.T) if trans_a else x
    model = _single("Gemm", weights, transA=trans_a, transB=trans_b)
    product = _rows_times_weights(model, x, weights)
    np.testing.assert_allclose(product[0], run(model, {"x": x})[0], rtol=1e-5, atol=1e-5)


def test_matmul_of_many_matrices() -> None:
    generator = np.random.default_rng(3)
    x = generator.standard_normal((2, 5, 3)).astype(np.float32)
    weights = generator.standard_normal((3, 4)).astype(np.float32)
    model = _single("MatMul", weights)
    product = _rows_times_weights(model, x, weights)
    np.testing.assert_allclose(product.reshape(2, 5, 4), run(model, {"x": x})[0], rtol=1e-5)


def test_layers_that_are_no_product_of_matrices_have_no_rows() -> None:
    stacked = np.ones((2, 3, 4), np.float32)
    (node,) = from_proto(_single("MatMul", stacked)).graph
    assert layer_input(node) is None
    (node,) = from_proto(_single("Add", stacked)).graph
    assert layer_input(node) is None


def test_a_part_of_the_rows_is_spread_evenly() -> None:
    layer = ProductInput()
    rows = layer.rows(np.arange(100, dtype=np.float32)[:, None], most=10)
    np.testing.assert_array_equal(rows[0, :, 0], np.arange(0, 100, 10))
    whole = ConvolutionInput((1,), (1,), (1,), (0, 0))
    assert whole.rows(np.ones((1, 2, 50), np.float32), most=7).shape == (1, 7, 2)


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 3, 9, 9), (1, 4, 1, 9)])
def test_arrays_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    layer = ConvolutionInput((3, 3), (1, 1), (1, 1), (0, 0, 0, 0), groups=2)
    with pytest.raises(ValueError, match="shape"):
        layer.rows(np.ones(shape, np.float32))
    with pytest.raises(ValueError, match="no matrix"):
        ProductInput().rows(np.ones((), np.float32))


@pytest.mark.parametrize(("sizes", "kernel", "groups"), [*_SPATIAL, ((8, 9), (1, 1), 1)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("auto_pad", ["NOTSET", "VALID", "SAME_UPPER"])
def test_parts_of_a_convolution_s_input_hold_rows_of_it(
    sizes: tuple[int, ...], kernel: tuple[int, ...], groups: int, batch: int, auto_pad: str
) -> None:
    generator = np.random.default_rng(3)
    x = generator.standard_normal((batch, 4, *sizes)).astype(np.float32)
    axes = len(sizes)
    for stride, gap, pads in itertools.product((1, 2), (1, 2), (0, 2)):
        layer = ConvolutionInput(
            kernel, (stride,) * axes, (gap,) * axes, (pads,) * (2 * axes), auto_pad, groups
        )
        _assert_parts(layer, x)


@pytest.mark.parametrize("transposed", [False, True])
def test_parts_of_a_product_s_input_hold_rows_of_it(transposed: bool) -> None:
    x = np.random.default_rng(4).standard_normal((2, 5, 6)).astype(np.float32)
    _assert_parts(ProductInput(transposed), x)


def _assert_parts(layer: LayerInput, x: np.ndarray) -> None:
    whole = layer.rows(x)
    known = _distinct(whole)
    assert layer.row_size(x.shape) == whole.shape[0] * whole.shape[2]
    assert layer.columns(x.shape) == whole.shape[2]
    laid = x.reshape(len(x), 2, 2, *x.shape[2:]) if layer.has_channels else x
    everything = layer.rows_of_part(layer.part(laid, whole.shape[1], 2**64 - 5))
    assert _distinct(everything) == known
    assert everything.shape == whole.shape
    for most, seed in ((1, 0), (4, 2**63 + 12345), (9, 98765 << 32)):
        found = layer.rows_of_part(layer.part(laid, most, seed))
        assert 1 <= found.shape[1] <= most
        assert len(_distinct(found)) > 0
        assert _distinct(found) <= known


def _distinct(rows: np.ndarray) -> set[bytes]:
    """The rows [groups, R, K], each with those of all groups together."""
    return {row.tobytes() for row in np.ascontiguousarray(rows.transpose(1, 0, 2))}


def test_some_outputs_are_spread_evenly() -> None:
    weights = np.arange(2 * 3 * 10, dtype=np.float32).reshape(2, 3, 10)
    assert np.array_equal(some_outputs(weights, 10), weights)
    assert np.array_equal(some_outputs(weights, 4), weights[:, :, [0, 2, 5, 7]])
