"""Matrix products around Reshape: the runtime has 8-bit kernels for all of them, in every mode."""

import pathlib

import numpy as np
import pytest
from onnxopt.passes.quantize.plan import Mode
from onnxopt.passes.quantize.trials import modes_for

from onnxopt.model import from_proto
from onnxopt.regions import Product, products
from tests.differential import parse
from tests.passes.quantize.lowered import decibels, kernels, lowered, run_at

RNG = np.random.default_rng(0)
_FLAT = "s = Constant<value = int64[2] {-1, 24}>() f = Reshape(x, s) "
_BACK = "t = Constant<value = int64[3] {-1, 5, 32}>() "

#: Kinds of inputs and outputs, and bodies.
NETS: dict[str, tuple[str, str, str]] = {
    "gemm": (
        "float[N, T, 24] x",
        "float[M, 10] y",
        f"{_FLAT} a = Gemm(f, w, b) r = Relu(a) y = Gemm(r, v, c)",
    ),
    "gemm without a bias": (
        "float[N, T, 24] x",
        "float[M, 32] y",
        f"{_FLAT} y = Gemm(f, w)",
    ),
    "gemm, and back": (
        "float[N, 5, 24] x",
        "float[N, 5, 32] y",
        f"{_FLAT} {_BACK} a = Gemm(f, w, b) q = Reshape(a, t) y = Softmax(q)",
    ),
    "gemm with a row for a bias": (
        "float[N, T, 24] x",
        "float[M, 32] y",
        f"{_FLAT} y = Gemm<alpha=0.5, beta=2.0>(f, w, row)",
    ),
    "matmul": (
        "float[N, T, 24] x",
        "float[M, 10] y",
        f"{_FLAT} a = MatMul(f, w) r = Relu(a) y = MatMul(r, v)",
    ),
    "matmul and a bias": (
        "float[N, T, 24] x",
        "float[M, 10] y",
        f"{_FLAT} a = MatMul(f, w) d = Add(a, b) r = Relu(d) z = MatMul(r, v) y = Add(z, c)",
    ),
    "matmul, back, and a bias": (
        "float[N, 5, 24] x",
        "float[N, 5, 32] y",
        f"{_FLAT} {_BACK} a = MatMul(f, w) q = Reshape(a, t) y = Add(q, b)",
    ),
    "matmul of three dimensions and a bias": (
        "float[N, T, 24] x",
        "float[N, T, 32] y",
        "a = MatMul(x, w) d = Add(a, b) y = Relu(d)",
    ),
}
SHAPES = {"w": (24, 32), "b": (32,), "row": (1, 32), "v": (32, 10), "c": (10,)}


#: Products of which no mode gives 8 bits: a float bias lies behind them.
_BIASED = ("matmul and a bias", "matmul of three dimensions and a bias")


@pytest.mark.parametrize(
    ("net", "mode"),
    [
        (net, mode)
        for net in NETS
        for mode in (Mode.STATIC, Mode.STATIC_INPUT, Mode.DYNAMIC)
        if mode is not Mode.STATIC or net not in _BIASED
    ],
)
def test_no_product_is_computed_in_float(net: str, mode: Mode, tmp_path: pathlib.Path) -> None:
    inputs, outputs, body = NETS[net]
    constants = {
        name: (RNG.standard_normal(shape) * 0.3).astype(np.float32)
        for name, shape in SHAPES.items()
        if f", {name})" in body or f", {name}," in body
    }
    model = parse(f"g ({inputs}) => ({outputs}) {{ {body} }}", constants)
    found = [each for each in products(from_proto(model).graph) if isinstance(each, Product)]
    for each in found:
        assert mode in modes_for(each, list(Mode))
        assert (Mode.STATIC in modes_for(each, list(Mode))) == (net not in _BIASED)
    feed = {"x": RNG.standard_normal((3, 5, 24)).astype(np.float32)}
    result, done = lowered(model, mode, feed)
    assert done[mode.value] == len(found)
    assert not kernels(result, tmp_path).keys() & {"Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
    for rows in (1, 3):
        part = {"x": feed["x"][:rows]}
        (expected,), (actual,) = run_at(model, part), run_at(result, part)
        assert expected.shape == actual.shape
        assert decibels(expected, actual) > 28
