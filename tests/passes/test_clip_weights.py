from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnxopt.passes.clip_weights import mse_bounds

from onnxopt.errors import OptionError
from onnxopt.model import to_proto
from onnxopt.pass_contract import Outcome
from onnxopt.pass_manager import parse_pipeline
from tests.differential import apply, parse, run

Array = np.ndarray[Any, Any]


def weights() -> Array:
    w = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    w[3, 7], w[5, 9] = 4, -4.5
    return w


def clip(proto: onnx.ModelProto, options: str) -> tuple[Array, Outcome]:
    model, outcomes = apply(proto, f"clip-weights{{{options}}}")
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    x = {"x": np.ones((2, 64), np.float32)}
    if outcomes["clip-weights"].modified:
        run(to_proto(model), x)
    return tensor.numpy(), outcomes["clip-weights"]


def gemm(w: Array) -> onnx.ModelProto:
    text = "g (float[n, 64] x) => (float[n, 32] y) { y = Gemm <transB = 1> (x, w) }"
    return parse(text, {"w": w})


def test_percentile_of_each_output() -> None:
    w = weights()
    after, outcome = clip(gemm(w), "method=percentile,percentile=95")
    bounds = np.percentile(np.abs(w.astype(np.float64)), 95, axis=1, keepdims=True)
    np.testing.assert_allclose(after, np.clip(w, -bounds, bounds), rtol=1e-6)
    assert outcome.rewritten == {"weight": 1}


def test_bound_of_least_squared_error() -> None:
    w = weights()
    after, _ = clip(gemm(w), "bits=3")
    assert np.abs(after[3]).max() < 3.5
    assert np.abs(after[5]).max() < 4
    kept = np.abs(w) < np.abs(after).max(axis=1, keepdims=True)
    np.testing.assert_array_equal(after[kept], w[kept])
    bounds = mse_bounds(w[None].astype(np.float64), 3)

    def error(bound: Array) -> Array:
        step = bound / 3
        rounded = np.clip(np.rint(w[None] / step), -3, 3) * step
        return np.asarray(np.square(rounded - w[None]).sum(axis=-1))

    largest = np.abs(w[None]).max(axis=-1, keepdims=True)
    assert np.all(error(bounds) <= error(largest))
    assert np.all(error(bounds) <= error(0.9 * bounds) + 1e-6)


def test_what_is_left_alone() -> None:
    w = np.ones((32, 64), np.float32)
    after, outcome = clip(gemm(w), "method=percentile,percentile=50")
    np.testing.assert_array_equal(after, w)
    assert outcome.refusals[0].reason == "it has no outliers"
    text = """g (float[n, 64] x) => (float[n, 32] y) <float s = {0.1}> {
        v = DequantizeLinear(w, s) y = Gemm <transB = 1> (x, v) }"""
    _, outcome = clip(parse(text, {"w": w.astype(np.int8)}), "")
    assert outcome.refusals[0].reason == "it is quantized already"
    text = "g (float[n, 64] x) => (float[n, 64] y) { y = Add(x, w) }"
    _, outcome = clip(parse(text, {"w": np.arange(64, dtype=np.float32)}), "min-elements=0")
    assert not outcome.matched["weight"]


@pytest.mark.parametrize("wrong", ["percentile=0", "percentile=101", "bits=1", "min-elements=-1"])
def test_wrong_options(wrong: str) -> None:
    with pytest.raises(OptionError):
        parse_pipeline(f"clip-weights{{{wrong}}}")
