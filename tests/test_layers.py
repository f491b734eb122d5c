"""Kernels are laid to the nodes they stand for, whatever the runtime fuses."""

import pathlib

import numpy as np
import onnx
import pytest

from onnxopt.details import look_closely
from onnxopt.findings import Layer
from onnxopt.layers import beside, layers
from onnxopt.model import from_proto
from onnxopt.runtime.worker import shared_worker
from tests.differential import parse


def found(model: onnx.ModelProto, folder: pathlib.Path, **feed: np.ndarray) -> dict[str, Layer]:
    path = folder / "model.onnx"
    onnx.save(model, path)
    details = look_closely(path, feed, threads=1, seconds=0.0, worker=shared_worker("trials"))
    timed = sum(each.seconds or 0.0 for each in details.layers)
    assert timed == pytest.approx(sum(details.kernel_seconds.values()))
    taken = details.footprint
    assert taken.peak_memory_bytes > taken.idle_memory_bytes > 0
    assert taken.load_seconds > 0
    return {each.name: each for each in details.layers}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_what_is_fused_goes_by_the_node_with_the_weights(tmp_path: pathlib.Path) -> None:
    w, b = normal(8, 8), normal(8)
    w[:4] = 0
    model = parse(
        """g (float[n, 8] x) => (float[n, 8] y) {
            m = MatMul(x, w) a = Add(m, b) r = Relu(a) y = Softmax(r)
        }""",
        {"w": w, "b": b},
    )
    result = found(model, tmp_path, x=normal(3, 8))
    product = result["m"]
    assert (product.operator, product.precision) == ("MatMul", "float32")
    assert product.seconds is not None
    assert product.weight_bytes == 8 * 8 * 4
    assert product.zeros == 0.5
    assert result["y"].kernel == "Softmax"
    assert result["y"].zeros is None


def test_blocked_convolutions_are_found_by_the_values_they_give(tmp_path: pathlib.Path) -> None:
    model = parse(
        """g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
            c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w)
            n = BatchNormalization(c, s, t, m, v)
            r = Relu(n)
            d = Conv<kernel_shape = [1, 1]>(r, u)
            y = Abs(d)
        }""",
        {
            "w": normal(16, 16, 3, 3),
            "u": normal(16, 16, 1, 1),
            **dict.fromkeys("stm", normal(16)),
            "v": np.ones(16, np.float32),
        },
    )
    result = found(model, tmp_path, x=normal(1, 16, 8, 8))
    for name in ("c", "d"):
        assert result[name].seconds is not None, name
        assert result[name].operator == "Conv"
    assert "n" not in result


def test_quantized_weights(tmp_path: pathlib.Path) -> None:
    q = np.full((8, 8), 128, np.uint8)
    q[0] = 3
    model = parse(
        """g (float[n, 8] x) => (float[n, 8] y) {
            s = Constant<value = float {0.05}>()
            z = Constant<value = uint8 {128}>()
            a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z)
            w = DequantizeLinear(q, s, z)
            m = MatMul(b, w)
            c = QuantizeLinear(m, s, z) y = DequantizeLinear(c, s, z)
        }""",
        {"q": q},
    )
    product = found(model, tmp_path, x=normal(3, 8))["m"]
    assert product.operator == "MatMul"
    assert product.precision == "uint8"
    assert product.zeros == pytest.approx(7 / 8)
    assert product.weight_bytes == 64


def test_zero_points_by_channel() -> None:
    q = np.full((16, 2), (1, 2), np.uint8)
    q[3, 0] = 5
    model = parse(
        """g (float[n, 16] x) => (float[n, 2] y) {
            w = DequantizeLinear<axis = 1>(q, s, z) y = MatMul(x, w)
        }""",
        {"q": q, "s": np.ones(2, np.float32), "z": np.array([1, 2], np.uint8)},
    )
    (layer,) = layers(from_proto(model))
    assert layer.zeros == pytest.approx(31 / 32)
    assert layer.precision == "uint8"


def test_weights_that_did_not_run_are_there_without_a_time(tmp_path: pathlib.Path) -> None:
    model = parse(
        """g (float[n, 4] x, bool c) => (float[n, 4] y) {
            y = If (c) <
                then_branch = t () => (float[n, 4] p) { p = MatMul(x, u) },
                else_branch = e () => (float[n, 4] q) { q = MatMul(x, w) }
            >
        }""",
        {"u": normal(4, 4), "w": normal(4, 4)},
    )
    result = found(model, tmp_path, x=normal(2, 4), c=np.array(True))
    assert result["p"].seconds is not None
    assert result["q"].seconds is None
    assert result["q"].weight_bytes == 64


def test_without_a_profile_only_layers_with_weights_are_there() -> None:
    model = parse(
        """g (float[n, 4] x) => (float[n, 4] y) {
            h = Constant<value = float {0.5}>()
            a = Mul(x, h) b = MatMul(a, w) y = Relu(b)
        }""",
        {"w": normal(4, 4)},
    )
    (layer,) = layers(from_proto(model))
    assert (layer.name, layer.seconds, layer.weight_bytes) == ("b", None, 64)


def test_layers_beside_those_of_the_original() -> None:
    before = [Layer("a", seconds=2.0, weight_bytes=8), Layer("gone", seconds=1.0)]
    after = [Layer("a", seconds=1.0, weight_bytes=4), Layer("new", seconds=0.5)]
    first, second = beside(after, before)
    assert (first.seconds_before, first.weight_bytes_before) == (2.0, 8)
    assert (second.seconds_before, second.weight_bytes_before) == (None, None)
