import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from tests.differential import op_types, optimize, parse, run, untouched

PASS = "infer-shapes,fuse-gelu"

NUMBERS: Mapping[str, float] = {
    "half": 0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "root": math.sqrt(2),
    "inverse": 1 / math.sqrt(2),
    "minus_inverse": -1 / math.sqrt(2),
    "cubic": 0.044715,
    "scale": math.sqrt(2 / math.pi),
    "scaled_cubic": math.sqrt(2 / math.pi) * 0.044715,
    "other": 0.7,
    "quick": 1.702,
}


def spelled(
    body: str, *, opset: int = 20, dtype: type[Any] = np.float32, more: str = "", size: str = "n, 4"
) -> onnx.ModelProto:
    name = {np.float32: "float", np.float16: "float16", np.float64: "double"}[dtype]
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return parse(
        f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
        f"g ({name}[{size}] x) => ({name}[{size}] y{more}) {{ {body} }}",
        {key: np.asarray(number, dtype) for key, number in NUMBERS.items() if key in words},
    )


def feed(*shape: int, dtype: type[Any] = np.float32) -> dict[str, np.ndarray]:
    return {"x": (np.random.default_rng(2).standard_normal(shape) * 3).astype(dtype)}


def rewritten(model: onnx.ModelProto) -> list[str]:
    return op_types(optimize(model, PASS, feed(3, 4), feed(0, 4)))


#: Ways to write the factors, of which any product is GELU; `{t}` is 1 + erf or tanh.
PRODUCTS = [
    "m = Mul(x, t) y = Mul(m, half)",
    "m = Mul(half, x) y = Mul(m, t)",
    "m = Mul(t, half) y = Mul(x, m)",
    "m = Mul(t, x) y = Div(m, two)",
    "m = Div(x, two) y = Mul(t, m)",
]
ERF = [
    "a = Div(x, root) e = Erf(a) t = Add(e, one) ",
    "a = Mul(x, inverse) e = Erf(a) t = Add(one, e) ",
    "a = Mul(inverse, x) e = Erf(a) t = Add(one, e) ",
    "a = Mul(x, minus_inverse) e = Erf(a) t = Sub(one, e) ",
]
TANH = [
    "p = Pow(x, three) a = Mul(p, cubic) b = Add(x, a) c = Mul(b, scale) e = Tanh(c) "
    "t = Add(e, one) ",
    "p0 = Mul(x, x) p = Mul(p0, x) a = Mul(cubic, p) b = Add(a, x) c = Mul(scale, b) e = Tanh(c) "
    "t = Add(one, e) ",
    "p = Mul(x, x) a = Mul(p, cubic) b = Add(a, one) d = Mul(x, b) c = Mul(scale, d) e = Tanh(c) "
    "t = Add(one, e) ",
    "p = Pow(x, two) a = Mul(p, scaled_cubic) b = Add(a, scale) c = Mul(b, x) e = Tanh(c) "
    "t = Add(one, e) ",
]


@pytest.mark.parametrize(("gate", "product"), list(itertools.product(ERF, PRODUCTS)))
def test_erf(gate: str, product: str) -> None:
    assert rewritten(spelled(gate + product)) == ["Gelu"]


@pytest.mark.parametrize(("gate", "product"), list(itertools.product(TANH, PRODUCTS)))
def test_tanh(gate: str, product: str) -> None:
    optimized = optimize(spelled(gate + product), PASS, feed(3, 4), feed(0, 4))
    assert op_types(optimized) == ["Gelu"]
    assert optimized.graph.node(0).attributes["approximate"].as_string() == "tanh"


@pytest.mark.parametrize("gate", ERF)
@pytest.mark.parametrize("opset", [13, 17, 19])
def test_an_opset_without_gelu(gate: str, opset: int) -> None:
    untouched(spelled(gate + PRODUCTS[0], opset=opset), PASS, "the opset has no Gelu")


def test_float16() -> None:
    model = spelled(ERF[0] + PRODUCTS[0], dtype=np.float16)
    feeds = feed(3, 4, dtype=np.float16)
    assert op_types(optimize(model, PASS, feeds, rtol=1e-2, atol=1e-2)) == ["Gelu"]


def test_tanh_in_float16_is_slower() -> None:
    untouched(spelled(TANH[0] + PRODUCTS[0], dtype=np.float16), PASS, "does not gain for float16")


@pytest.mark.parametrize("gate", [ERF[0], TANH[0]])
def test_double(gate: str) -> None:
    untouched(spelled(gate + PRODUCTS[0], dtype=np.float64), PASS, "does not gain for double")


@pytest.mark.parametrize(
    "body",
    [
        ERF[0].replace("root", "two") + PRODUCTS[0],
        ERF[0].replace("Div(x, root)", "Mul(x, other)") + PRODUCTS[0],
        ERF[0].replace("one", "two") + PRODUCTS[0],
        ERF[0].replace("Add(e, one)", "Sub(one, e)") + PRODUCTS[0],
        ERF[0].replace("Erf", "Tanh") + PRODUCTS[0],
        ERF[0] + PRODUCTS[0].replace("half", "other"),
        ERF[0] + "z = Neg(x) m = Mul(z, t) y = Mul(m, half)",
        ERF[0] + "m = Mul(x, t) y = Add(m, half)",
        ERF[0] + "z = Exp(x) m = Mul(z, t) y = Mul(m, half)",
        ERF[0] + "y = Mul(x, t)",
        TANH[0].replace("three", "two") + PRODUCTS[0],
        TANH[0].replace("cubic", "other") + PRODUCTS[0],
        TANH[0].replace("scale)", "inverse)") + PRODUCTS[0],
        TANH[0].replace("Add(x, a)", "Sub(x, a)") + PRODUCTS[0],
        TANH[0].replace("Tanh", "Erf") + PRODUCTS[0],
        TANH[1].replace("p = Mul(p0, x)", "p = Mul(p0, p0)") + PRODUCTS[0],
        "a = Mul(x, quick) s = Sigmoid(a) y = Mul(x, s)",
    ],
)
def test_other_formulas(body: str) -> None:
    untouched(spelled(body), PASS)


@pytest.mark.parametrize("name", ["a", "e", "t", "m"])
def test_an_intermediate_that_is_read_elsewhere(name: str) -> None:
    body = f"{ERF[0]}{PRODUCTS[0]} y1 = Neg({name})"
    untouched(spelled(body, more=", float[n, 4] y1"), PASS, "used elsewhere")


@pytest.mark.parametrize("name", ["a", "e", "t", "m"])
def test_an_intermediate_that_is_a_graph_output(name: str) -> None:
    model = spelled(ERF[0] + PRODUCTS[0], more=f", float[n, 4] {name}")
    untouched(model, PASS, "used elsewhere")


def test_a_square_that_is_read_twice_within() -> None:
    body = (
        "p = Mul(x, x) q = Mul(p, x) a = Mul(q, cubic) b = Add(a, x) c = Mul(b, scale) "
        "e = Tanh(c) t = Add(one, e) " + PRODUCTS[0]
    )
    assert rewritten(spelled(body)) == ["Gelu"]


def test_a_constant_that_widens() -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[n] x) => (float[1, n] y)
        <float r = {1.4142135}, float one = {1}, float[1, 1] half = {0.5}> {
            a = Div(x, r) e = Erf(a) t = Add(e, one) m = Mul(x, t) y = Mul(m, half)
        }"""
    )
    untouched(model, PASS, "widens")


@pytest.mark.parametrize("size", ["4", "2, 3, 4, 2, 2"])
def test_any_rank(size: str) -> None:
    shape = [int(each) for each in size.split(",")]
    model = spelled(ERF[0] + PRODUCTS[0], size=size)
    assert op_types(optimize(model, PASS, feed(*shape))) == ["Gelu"]


def test_a_branch() -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (bool c, float[n, 3] x) => (float[n, 3] y)
        <float r = {1.4142135}, float one = {1}, float half = {0.5}> {
            y = If (c) <
                then_branch = t () => (float[n, 3] t1) {
                    a = Div(x, r) e = Erf(a) t = Add(e, one) m = Mul(x, t) t1 = Mul(m, half)
                },
                else_branch = e () => (float[n, 3] e1) { e1 = Neg(x) }
            >
        }"""
    )
    feeds = [{"c": np.asarray(flag), **feed(2, 3)} for flag in (True, False)]
    assert op_types(optimize(model, PASS, *feeds)) == ["If", "Gelu", "Neg"]


@pytest.mark.parametrize("gate", [ERF[0], TANH[0]])
def test_after_a_bias(gate: str) -> None:
    """The bias stays outside; the runtime joins it to Gelu when it loads the model."""
    model = spelled("x0 = Add(x, bias) " + (gate + PRODUCTS[0]).replace("(x, ", "(x0, "))
    bias = np.array([1, -1, 0, 2], np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(bias, "bias"))
    model.graph.node[0].input[0] = "x"
    assert rewritten(model) == ["Add", "Gelu"]
    assert run(model, feed(2, 4))
