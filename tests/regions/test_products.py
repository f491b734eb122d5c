"""Products are found with all that is computed along with them, and what is none says why."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.model import from_proto
from onnxopt.regions import Product, clamp_after, products
from tests.differential import parse

RNG = np.random.default_rng(2)


def _array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _model(text: str, **constants: np.ndarray) -> ir.Model:
    return from_proto(parse(text, constants))


def _only(model: ir.Model) -> Product:
    (found,) = products(model.graph)
    assert isinstance(found, Product), found
    return found


def _why_not(model: ir.Model) -> str:
    ((_, reason),) = (each for each in products(model.graph) if not isinstance(each, Product))
    return reason


def test_a_convolution_holds_its_bias_and_clamp() -> None:
    weights, bias = _array(6, 2, 3, 3), _array(6)
    model = _model(
        "g (float[N, 4, H, W] x) => (float[N, 6, P, Q] y) "
        "{ c = Conv<group=2>(x, w, b) y = Relu(c) }",
        w=weights,
        b=bias,
    )
    found = _only(model)
    assert found.key == "c"
    assert found.groups == 2
    assert found.channel_axis == 0
    np.testing.assert_array_equal(found.weights, weights)
    np.testing.assert_array_equal(found.bias, bias)
    assert found.clamp is not None
    assert (found.clamp.low, found.clamp.high) == (0.0, math.inf)
    assert (found.unclamped.name, found.output.name) == ("c", "y")
    assert [node.op_type for node in found.nodes] == ["Conv", "Relu"]


def test_factors_and_transposition_of_gemm_are_multiplied_in() -> None:
    weights, bias, x = _array(5, 7), _array(5), _array(3, 7)
    model = _model(
        "g (float[N, 7] x) => (float[N, 5] y) { y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b) }",
        w=weights,
        b=bias,
    )
    found = _only(model)
    assert found.channel_axis == 1
    assert found.bias is not None
    np.testing.assert_allclose(
        x @ found.weights + found.bias, 0.5 * x @ weights.T + 2 * bias, rtol=1e-5
    )


@pytest.mark.parametrize("order", ["m, b", "b, m"])
def test_a_matmul_holds_the_vector_that_is_added(order: str) -> None:
    model = _model(
        f"g (float[N, S, 4] x) => (float[N, S, 6] y) {{ m = MatMul(x, w) y = Add({order}) }}",
        w=_array(4, 6),
        b=_array(6),
    )
    found = _only(model)
    assert found.bias_node is not None
    assert found.bias is not None
    assert (found.key, found.unclamped.name) == ("m", "y")


@pytest.mark.parametrize(
    "rest",
    [
        "y = Add(m, b) z = Exp(m)",  # something else reads the product
        "y = Add(m, c) z = Exp(b)",  # no vector
        "y = Mul(m, b) z = Exp(c)",
    ],
)
def test_what_is_no_bias_stays_outside(rest: str) -> None:
    model = _model(
        f"g (float[N, S, 4] x) => (float[N, S, 6] y) {{ m = MatMul(x, w) {rest} }}",
        w=_array(4, 6),
        b=_array(6),
        c=_array(1, 6),
    )
    found = _only(model)
    assert found.bias is None
    assert found.bias_node is None
    assert found.output.name == "m"


def test_weights_are_read_through_nodes_that_move_them() -> None:
    weights = _array(6, 4)
    model = _model(
        "g (float[N, 4] x) => (float[N, 6] y) "
        "{ i = Identity(w) t = Transpose<perm=[1, 0]>(i) y = MatMul(x, t) }",
        w=weights,
    )
    np.testing.assert_array_equal(_only(model).weights, weights.T)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[N, 4] x, float[4, 6] v) => (float[N, 6] y) { y = MatMul(x, v) }", "activations"),
        ("g (float[4, N] x) => (float[N, 6] y) { y = Gemm<transA=1>(x, w) }", "transposed"),
        ("g (float[N, 4] x, float[6] c) => (float[N, 6] y) { y = Gemm(x, w, c) }", "bias"),
        ("g (float[B, N, 4] x) => (float[B, N, 6] y) { y = MatMul(x, stack) }", "no matrix"),
        ("g (float[N, 2, A, B, C] x) => (float[N, 3, P, Q, R] y) { y = Conv(x, cube) }", "one and"),
        ("g (float[N, 4, L] x) => (float[N, 2, M] y) { y = ConvTranspose(x, line) }", "kernel"),
        (
            "g (float[N, 2, L] x, float[3, 2, 1] v) => (float[N, 3, L] y) { y = Conv(x, v) }",
            "its weights are not constant",
        ),
        ("g (float[N, 4] x) => (float[N, 6] y) { y = MatMul(x, infinite) }", "finite"),
        ("g (double[N, 4] x) => (double[N, 6] y) { y = MatMul(x, double) }", "float64"),
    ],
)
def test_what_is_left_alone_says_why(text: str, reason: str) -> None:
    constants = {
        "w": _array(4, 6),
        "stack": _array(3, 4, 6),
        "cube": _array(3, 2, 1, 1, 1),
        "line": _array(4, 2, 3),
        "infinite": np.full((4, 6), np.inf, np.float32),
        "double": _array(4, 6).astype(np.float64),
    }
    used = {name: array for name, array in constants.items() if f", {name}" in text}
    assert reason in _why_not(_model(text, **used))


def test_a_clamp_is_none_that_others_could_see_around() -> None:
    body = "g (float[N] x) => (float[N] y) { a = Exp(x) c = Clip(a, low, high) y = Mul(c, OTHER) }"
    bounds = {"low": np.float32(-1), "high": np.float32(3)}
    for other, expected in (("c", (-1.0, 3.0)), ("a", None)):
        model = _model(
            body.replace("OTHER", other), **{k: np.asarray(v) for k, v in bounds.items()}
        )
        clamp = clamp_after(model.graph[0].outputs[0])
        assert (None if clamp is None else (clamp.low, clamp.high)) == expected


def test_a_clamp_with_bounds_from_outside_is_none() -> None:
    model = _model("g (float[N] x, float high) => (float[N] y) { a = Exp(x) y = Clip(a, , high) }")
    assert clamp_after(model.graph[0].outputs[0]) is None
