"""Activations in operators that the runtime is faster with."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.model import from_proto, to_proto
from onnxopt.pass_manager import PassManager, parse_pipeline
from tests.differential import op_types, optimize, parse, run, untouched

PASS = "expand-activations"
_EXTREME = np.array(
    [np.inf, -np.inf, np.nan, 0, 1e-38, -1e-38, 3e38, -3e38, 88, -88, 19.9, 20.1, 45, -104],
    np.float32,
)


def feed(*shape: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": 4 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def sloped(slope: Any, shape: str = "n, 16, h, w", kind: str = "float") -> onnx.ModelProto:
    text = f"g ({kind}[{shape}] x) => ({kind}[{shape}] y) {{ y = PRelu(x, s) }}"
    return parse(text, {"s": np.asarray(slope, np.float16 if kind == "float16" else np.float32)})


def slopes(low: float, high: float) -> np.ndarray[Any, Any]:
    return np.linspace(low, high, 16, dtype=np.float32).reshape(16, 1, 1)


@pytest.mark.parametrize("slope", [0.25, [0.25], [[[0.1]]], np.full((16, 1, 1), -0.3), 0, 7])
def test_one_slope_is_leaky_relu(slope: Any) -> None:
    optimized = optimize(
        sloped(slope), PASS, feed(2, 16, 3, 5), feed(1, 16, 1, 1), feed(0, 16, 2, 2)
    )
    assert op_types(optimized) == ["LeakyRelu"]


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.9), (1e-30, 1)])
def test_slopes_up_to_1_are_a_maximum(low: float, high: float) -> None:
    proto = sloped(slopes(low, high))
    optimized = optimize(proto, PASS, feed(2, 16, 3, 5), feed(1, 16, 9, 1))
    assert op_types(optimized) == ["Mul", "Max"]
    extreme = {"x": np.broadcast_to(_EXTREME, (1, 16, 2, len(_EXTREME))).copy()}
    [before], [after] = run(proto, extreme), run(to_proto(optimized), extreme)
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (sloped(slopes(-0.1, 0.9)), "not between 0 and 1"),
        (sloped(slopes(0.1, 1.1)), "not between 0 and 1"),
        (sloped(slopes(0.0, 0.9)), "not between 0 and 1"),  # 0 times infinity is no number
        (sloped(np.inf), "not finite"),
        (sloped(slopes(0.1, 0.9), "n, 16, 20, 20"), "too small"),
        (sloped(np.full((1, 1, 1, 1, 1), 0.5)), "may widen"),
        (sloped(np.full((16, 1, 1), 0.5), "n, c, h, w"), "may widen"),
        (sloped(0.25, kind="float16"), "float32"),
    ],
)
def test_what_is_left_alone(model: onnx.ModelProto, reason: str) -> None:
    untouched(model, PASS, reason)


def test_a_slope_that_is_computed_is_left_alone() -> None:
    untouched(parse("g (float[n] x, float[1] s) => (float[n] y) { y = PRelu(x, s) }"), PASS)


def test_thriftily_only_what_takes_no_more_nodes() -> None:
    thrifty = f"{PASS}{{grow=false}}"
    assert op_types(optimize(sloped(0.25), thrifty, feed(2, 16, 3, 5))) == ["LeakyRelu"]
    untouched(sloped(slopes(0.1, 0.9)), thrifty)
    untouched(parse("g (float[n] x) => (float[n] y) { y = Mish(x) }"), thrifty)
    [given] = parse_pipeline(PASS)
    lighter = given.thrifty()
    assert lighter is not None
    assert lighter.text == thrifty
    assert lighter.thrifty() is None


_MISH = {
    "operator": "y = Mish(x)",
    "spelled": "a = Softplus(x) b = Tanh(a) y = Mul(x, b)",
    "the other way round": "a = Softplus(x) b = Tanh(a) y = Mul(b, x)",
}


@pytest.mark.parametrize("body", _MISH.values(), ids=_MISH)
@pytest.mark.parametrize("passes", [PASS, "exact"])
def test_mish(body: str, passes: str) -> None:
    proto = parse(f"g (float[n, 3] x) => (float[n, 3] y) {{ {body} }}")
    optimized = optimize(proto, passes, feed(7, 3), feed(0, 3), rtol=2e-6, atol=1e-7)
    assert {"Softplus", "Tanh", "Mish"}.isdisjoint(op_types(optimized))
    extreme = {"x": np.repeat(_EXTREME, 3).reshape(-1, 3)}
    [before], [after] = run(proto, extreme), run(to_proto(optimized), extreme)
    np.testing.assert_allclose(after, before, rtol=2e-6, atol=1e-40)  # subnormal


def test_mish_is_right_to_the_last_places() -> None:
    proto = parse("g (float[n] x) => (float[n] y) { y = Mish(x) }")
    model = from_proto(proto)
    PassManager(parse_pipeline(PASS)).run(model)
    x = np.linspace(-100, 100, 100_001, dtype=np.float32)
    [found] = run(to_proto(model), {"x": x})
    wide = x.astype(np.float64)
    true = wide * np.tanh(np.log1p(np.exp(np.minimum(wide, 700))))
    np.testing.assert_allclose(found, true, rtol=1e-6, atol=1e-42)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[n] x, float[n] z) => (float[n] y) { a = Softplus(x) b = Tanh(a) y = Mul(z, b) }",
        "g (double[n] x) => (double[n] y) { a = Softplus(x) b = Tanh(a) y = Mul(x, b) }",
        "g (float[n] x) => (float[n] y, float[n] b) { a = Softplus(x) b = Tanh(a) y = Mul(x, b) }",
        """g (float[n] x) => (float[n] y, float[n] z) {
            a = Softplus(x) b = Tanh(a) y = Mul(x, b) z = Neg(a)
        }""",
    ],
)
def test_what_is_no_mish(text: str) -> None:
    untouched(parse(text), PASS)
