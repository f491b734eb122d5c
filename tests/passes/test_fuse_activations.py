from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.differential import op_types, optimize, parse, run, untouched

PASS = "infer-shapes,fuse-activations"

DTYPES = {"float": np.float32, "float16": np.float16, "double": np.float64}

#: Constants that the bodies below may name; each is written in the dtype of the model.
NUMBERS: Mapping[str, float] = {
    "zero": 0.0,
    "tenth": 0.1,
    "sixth": 1 / 6,
    "fifth": 0.2,
    "half": 0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "six": 6.0,
    "five": 5.0,
    "minus_one": -1.0,
    "minus_half": -0.5,
    "minus_two": -2.0,
    "minus_three": -3.0,
    "minus_tenth": -0.1,
    "sloppy_sixth": 0.1667,
}


def spelled(
    body: str,
    *,
    opset: int = 18,
    dtype: str = "float",
    shape: str = "n, 3, 4",
    constant_shape: tuple[int, ...] = (),
    more: Mapping[str, np.ndarray] | None = None,
    outputs: str = "",
) -> onnx.ModelProto:
    """A model of x to y with this body; numbers it names become initializers."""
    header = f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
    text = f"g ({dtype}[{shape}] x) => ({dtype}[{shape}] y{outputs}) {{ {body} }}"
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    arrays = {
        name: np.full(constant_shape, number, DTYPES[dtype])
        for name, number in NUMBERS.items()
        if name in words
    }
    return parse(header + text, {**arrays, **(more or {})})


def feed(*shape: int, dtype: str = "float") -> dict[str, np.ndarray]:
    """Numbers around the bends of all activations, zero and the extremes among them."""
    numbers = np.random.default_rng(1).uniform(-8, 8, shape).astype(DTYPES[dtype])
    if numbers.size > 4:
        numbers.reshape(-1)[:5] = 0, -3, 3, -8, 8
    return {"x": numbers}


def rewritten(
    model: onnx.ModelProto, *feeds: dict[str, np.ndarray], **tolerance: float
) -> list[str]:
    return op_types(optimize(model, PASS, *(feeds or (feed(2, 3, 4), feed(0, 3, 4))), **tolerance))


HARD_SWISH = [
    "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)",
    "a = Add(three, x) b = Clip(a, zero, six) c = Mul(b, x) y = Mul(c, sixth)",
    "a = Add(x, three) b = Clip(a, zero, six) c = Div(b, six) y = Mul(x, c)",
    "a = Add(x, three) b = Clip(a, zero, six) c = Mul(sixth, b) y = Mul(c, x)",
    "d = Div(x, six) a = Add(x, three) b = Clip(a, zero, six) y = Mul(d, b)",
    "d = Mul(x, sixth) a = Sub(x, minus_three) b = Clip(a, zero, six) y = Mul(b, d)",
    "a = Add(x, three) r = Relu(a) b = Min(r, six) c = Mul(x, b) y = Div(c, six)",
    "a = Add(x, three) r = Max(zero, a) b = Min(six, r) c = Mul(x, b) y = Div(c, six)",
    "a = Add(x, three) r = Min(a, six) b = Max(r, zero) c = Mul(x, b) y = Div(c, six)",
    "a = Add(x, three) r = Min(a, six) b = Relu(r) c = Mul(x, b) y = Div(c, six)",
    "a = Mul(x, sixth) d = Add(a, half) b = Clip(d, zero, one) y = Mul(x, b)",
    "a = Clip(x, minus_three, three) b = Add(a, three) c = Mul(x, b) y = Div(c, six)",
    "a = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul(a, x)",
]


@pytest.mark.parametrize("body", HARD_SWISH)
def test_hard_swish(body: str) -> None:
    assert rewritten(spelled(body)) == ["HardSwish"]


@pytest.mark.parametrize("body", HARD_SWISH[:-1])
def test_before_opset_14_hard_swish_is_a_hard_sigmoid_and_a_product(body: str) -> None:
    assert rewritten(spelled(body, opset=13)) == ["HardSigmoid", "Mul"]


@pytest.mark.parametrize("opset", [7, 8, 10])
def test_hard_swish_with_bounds_as_attributes(opset: int) -> None:
    body = "a = Add(x, three) b = Clip <min = 0.0, max = 6.0> (a) c = Mul(x, b) y = Div(c, six)"
    assert rewritten(spelled(body, opset=opset)) == ["HardSigmoid", "Mul"]


@pytest.mark.parametrize("opset", [14, 21, 22, 24])
def test_hard_swish_by_opset(opset: int) -> None:
    assert rewritten(spelled(HARD_SWISH[0], opset=opset)) == ["HardSwish"]


def test_hard_swish_in_float16() -> None:
    model = spelled(HARD_SWISH[1], dtype="float16")
    assert rewritten(model, feed(2, 3, 4, dtype="float16"), rtol=1e-2, atol=1e-2) == ["HardSwish"]


def test_hard_swish_in_double_has_no_kernel() -> None:
    untouched(spelled(HARD_SWISH[0], dtype="double"), PASS, "does not gain for double")


def test_a_gate_with_another_slope_is_hard_sigmoid() -> None:
    body = "a = Mul(x, fifth) d = Add(a, half) b = Clip(d, zero, one) y = Mul(x, b)"
    assert rewritten(spelled(body)) == ["HardSigmoid", "Mul"]


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 4, 5, 2)])
def test_hard_swish_at_any_rank(shape: tuple[int, ...]) -> None:
    model = spelled(HARD_SWISH[0], shape=", ".join(map(str, shape)))
    assert rewritten(model, feed(*shape)) == ["HardSwish"]


@pytest.mark.parametrize("body", HARD_SWISH[4:6])
def test_constants_of_length_one(body: str) -> None:
    """As Paddle writes them, except that Clip takes scalars."""
    body = body.replace("zero, six", "low, high")
    bounds = {"low": np.float32(0), "high": np.float32(6)}
    model = spelled(body, constant_shape=(1,), more={k: np.asarray(v) for k, v in bounds.items()})
    assert rewritten(model) == ["HardSwish"]


def test_a_constant_of_higher_rank_widens() -> None:
    body = (
        "a = Add(x, three) r = Relu(a) b = Min(r, six) c = Mul(x, b) y0 = Div(c, six) y = Relu(y0)"
    )
    model = parse(
        "g (float[n] x) => (float[1, n] y) <float[1, 1] three = {3}, float six = {6}> {"
        + body
        + "}"
    )
    untouched(model, PASS, "widens")


def test_a_constant_with_a_rank_and_an_unknown_rank() -> None:
    model = parse(
        """g (float[n, 2] x, int64[k] s) => (float y) <float[1] three = {3}, float six = {6}> {
            z = Reshape(x, s) a = Add(z, three) r = Relu(a) b = Min(r, six) c = Mul(z, b)
            y = Div(c, six)
        }"""
    )
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    untouched(model, PASS, "unknown")


@pytest.mark.parametrize(
    "body",
    [
        HARD_SWISH[0].replace("three", "two"),
        HARD_SWISH[0].replace("Clip(a, zero, six)", "Clip(a, zero, five)"),
        HARD_SWISH[0].replace("Clip(a, zero, six)", "Clip(a, one, six)"),
        HARD_SWISH[0].replace("Clip(a, zero, six)", "Clip(a, zero)"),
        HARD_SWISH[1].replace("sixth", "sloppy_sixth"),
        HARD_SWISH[1].replace("sixth", "fifth"),
        HARD_SWISH[0].replace("Div(c, six)", "Sub(c, six)"),
        HARD_SWISH[0].replace("Div(c, six)", "Div(six, c)"),
        HARD_SWISH[0].replace("Mul(x, b)", "Mul(a, b)"),
        HARD_SWISH[0].replace("Mul(x, b)", "Add(x, b)"),
        "a = Clip(x, zero, one) y = Mul(x, a)",
    ],
)
def test_other_formulas_are_not_hard_swish(body: str) -> None:
    model = spelled(body)
    optimized = optimize(model, PASS, feed(2, 3, 4))
    assert "HardSwish" not in op_types(optimized)


@pytest.mark.parametrize("reader", ["y1 = Neg(a)", "y1 = Neg(b)", "y1 = Neg(c)"])
def test_an_intermediate_that_is_read_elsewhere(reader: str) -> None:
    model = spelled(f"{HARD_SWISH[0]} {reader}", outputs=", float[n, 3, 4] y1")
    untouched(model, PASS, "used elsewhere")


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_an_intermediate_that_is_a_graph_output(name: str) -> None:
    untouched(spelled(HARD_SWISH[0], outputs=f", float[n, 3, 4] {name}"), PASS, "used elsewhere")


def test_a_constant_that_may_be_overridden_is_none() -> None:
    model = spelled(HARD_SWISH[0])
    model.graph.input.append(onnx.helper.make_tensor_value_info("three", 1, []))
    untouched(model, PASS)


def test_bounds_that_are_computed() -> None:
    model = parse(
        """g (float[n] x, float h) => (float[n] y) <float three = {3}, float z = {0}> {
            a = Add(x, three) b = Clip(a, z, h) c = Mul(x, b) y = Div(c, three)
        }"""
    )
    untouched(model, PASS, "not constant")


def test_other_readers_of_x_do_not_matter() -> None:
    body = "x0 = Neg(x) a = Add(x0, three) b = Clip(a, zero, six) c = Mul(x0, b) y = Div(c, six)"
    model = spelled(f"{body} y1 = Exp(x0)", outputs=", float[n, 3, 4] y1")
    assert rewritten(model) == ["Neg", "HardSwish", "Exp"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, three) b = Clip(a, zero, six) y = Div(b, six)",
        "a = Add(x, three) b = Clip(a, zero, six) y = Mul(sixth, b)",
        "a = Mul(x, fifth) b = Add(half, a) y = Clip(b, zero, one)",
        "a = Div(x, five) b = Add(half, a) r = Relu(b) y = Min(r, one)",
        "a = Mul(x, fifth) b = Sub(half, a) y = Clip(b, zero, one)",
        "a = Clip(x, minus_three, three) b = Add(a, three) y = Div(b, six)",
        "a = Mul(x, fifth) b = Clip(a, minus_half, half) y = Sub(half, b)",
        "c = Neg(x) a = Mul(c, fifth) b = Add(half, a) y = Clip(b, zero, one)",
    ],
)
@pytest.mark.parametrize("opset", [12, 18, 23])
def test_hard_sigmoid(body: str, opset: int) -> None:
    assert rewritten(spelled(body, opset=opset)) == ["HardSigmoid"]


@pytest.mark.parametrize(
    ("low", "high"), [(1e-6, 1.0), (1e-6, 1 - 1e-6), (0.0, 1 - 1e-6), (-1e-6, 1.0)]
)
@pytest.mark.parametrize("tail", ["y = Log(c)", "y = Mul(x, c)", "d = Sub(c, half) y = Log(d)"])
def test_bounds_that_keep_a_logarithm_finite(low: float, high: float, tail: str) -> None:
    more = {"low": np.asarray(low, np.float32), "high": np.asarray(high, np.float32)}
    body = "a = Mul(x, fifth) b = Add(half, a) c = Clip(b, low, high) "
    untouched(spelled(body + tail, more=more), PASS)


def test_hard_sigmoid_does_not_reach_over_a_value_that_stays() -> None:
    body = "a = Mul(x, fifth) b = Add(half, a) y = Clip(b, zero, one) y1 = Exp(a)"
    model = spelled(body, outputs=", float[n, 3, 4] y1")
    assert rewritten(model) == ["Mul", "HardSigmoid", "Exp"]


@pytest.mark.parametrize(
    "body",
    [
        "y = Clip(x, zero, one)",
        "a = Mul(x, fifth) y = Clip(a, zero, two)",
        "a = Mul(x, fifth) y = Clip(a, minus_one, one)",
        "a = Mul(x, zero) y = Clip(a, zero, one)",
        "a = Mul(x, x) y = Clip(a, zero, one)",
        "a = Mul(x, fifth) y = Clip(a, one, zero)",
    ],
)
def test_not_hard_sigmoid(body: str) -> None:
    untouched(spelled(body), PASS)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("n = Neg(x) e = Exp(n) a = Add(e, one) y = Reciprocal(a)", ["Sigmoid"]),
        ("n = Neg(x) e = Exp(n) a = Add(one, e) y = Div(one, a)", ["Sigmoid"]),
        ("n = Mul(x, minus_one) e = Exp(n) a = Add(one, e) y = Div(one, a)", ["Sigmoid"]),
        ("n = Sub(zero, x) e = Exp(n) a = Add(one, e) y = Div(one, a)", ["Sigmoid"]),
        ("n = Mul(x, minus_two) e = Exp(n) a = Add(one, e) y = Div(one, a)", ["Mul", "Sigmoid"]),
        ("e = Exp(x) a = Add(one, e) y = Div(one, a)", ["Neg", "Sigmoid"]),
        ("n = Neg(x) e = Exp(n) a = Add(one, e) y = Div(x, a)", ["Sigmoid", "Mul"]),
        ("n = Neg(x) e = Exp(n) a = Add(one, e) y = Div(two, a)", ["Sigmoid", "Mul"]),
        ("a = Mul(x, half) t = Tanh(a) b = Mul(t, half) y = Add(b, half)", ["Sigmoid"]),
        ("a = Div(x, two) t = Tanh(a) b = Add(one, t) y = Div(b, two)", ["Sigmoid"]),
        ("a = Mul(x, minus_half) t = Tanh(a) b = Mul(t, half) y = Sub(half, b)", ["Sigmoid"]),
        ("a = Mul(x, two) s = Sigmoid(a) b = Mul(s, two) y = Sub(b, one)", ["Tanh"]),
        ("a = Mul(x, minus_two) s = Sigmoid(a) b = Mul(s, two) y = Sub(one, b)", ["Tanh"]),
        (
            "m = Mul(x, minus_two) e = Exp(m) a = Add(e, one) d = Div(two, a) y = Sub(d, one)",
            ["Tanh"],
        ),
        ("m = Mul(x, two) e = Exp(m) a = Add(e, one) d = Div(two, a) y = Sub(one, d)", ["Tanh"]),
        ("a = Abs(x) b = Add(a, one) y = Div(x, b)", ["Softsign"]),
        ("a = Abs(x) b = Add(one, a) y = Div(x, b)", ["Softsign"]),
    ],
)
def test_sigmoid_tanh_softsign(body: str, expected: list[str]) -> None:
    model = spelled(body)
    assert rewritten(model) == expected
    far = {"x": np.array([[[-200, 200, -90, 90]] * 3], np.float32)}
    rewritten(model, far)


@pytest.mark.parametrize(
    "body",
    [
        "n = Neg(x) e = Exp(n) a = Add(e, two) y = Reciprocal(a)",
        "n = Sub(one, x) e = Exp(n) b = Exp(e) y = Div(one, b)",
        "e = Exp(x) a = Add(one, e) y = Div(a, e)",
        "a = Mul(x, half) t = Tanh(a) b = Mul(t, half) y = Add(b, one)",
        "a = Mul(x, two) t = Tanh(a) b = Mul(t, half) y = Add(b, half)",
        "a = Mul(x, two) s = Sigmoid(a) b = Mul(s, two) y = Add(b, one)",
        "a = Abs(x) b = Add(a, two) y = Div(x, b)",
        "a = Abs(x) b = Add(a, one) y = Div(b, x)",
        "p = Exp(x) n = Neg(x) q = Exp(n) s = Sub(p, q) t = Add(p, q) y = Div(s, t)",
        "s = Sigmoid(x) y = Mul(x, s)",
        "e = Exp(x) a = Add(e, one) y = Log(a)",
        "s = Softplus(x) t = Tanh(s) y = Mul(x, t)",
    ],
)
def test_not_sigmoid_tanh_softsign(body: str) -> None:
    untouched(spelled(body, opset=24), PASS)


@pytest.mark.parametrize(
    "body",
    [
        "n = Neg(x) e = Exp(n) a = Add(e, one) y = Reciprocal(a)",
        "a = Abs(x) b = Add(a, one) y = Div(x, b)",
        "a = Mul(x, tenth) y = Max(x, a)",
    ],
)
def test_double_that_is_slower_or_has_no_kernel(body: str) -> None:
    untouched(spelled(body, dtype="double"), PASS, "does not gain for double")


def test_sigmoid_whose_exponential_is_read_elsewhere() -> None:
    body = "n = Neg(x) e = Exp(n) a = Add(e, one) y = Reciprocal(a) y1 = Relu(e)"
    untouched(spelled(body, outputs=", float[n, 3, 4] y1"), PASS, "used elsewhere")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("c = Less(x, zero) y = Where(c, zero, x)", "Relu"),
        ("c = LessOrEqual(x, zero) y = Where(c, zero, x)", "Relu"),
        ("c = Greater(zero, x) y = Where(c, zero, x)", "Relu"),
        ("c = GreaterOrEqual(zero, x) y = Where(c, zero, x)", "Relu"),
        ("c = Greater(x, zero) a = Mul(x, tenth) y = Where(c, x, a)", "LeakyRelu"),
        ("c = Less(x, zero) a = Div(x, five) y = Where(c, a, x)", "LeakyRelu"),
        ("c = Less(x, zero) a = Mul(minus_half, x) y = Where(c, a, x)", "LeakyRelu"),
        ("c = Less(x, zero) a = Neg(x) y = Where(c, a, x)", "Abs"),
        ("c = Greater(x, zero) e = Exp(x) a = Sub(e, one) y = Where(c, x, a)", "Elu"),
        (
            "c = Greater(x, zero) e = Exp(x) a = Sub(e, one) b = Mul(a, half) y = Where(c, x, b)",
            "Elu",
        ),
        ("c = Greater(x, one) y = Where(c, x, zero)", "ThresholdedRelu"),
        ("c = Less(minus_half, x) y = Where(c, x, zero)", "ThresholdedRelu"),
        ("a = Mul(x, tenth) y = Max(x, a)", "LeakyRelu"),
        ("a = Div(x, five) y = Max(a, x)", "LeakyRelu"),
        ("a = Neg(x) y = Max(x, a)", "Abs"),
        ("a = Mul(x, minus_one) y = Max(a, x)", "Abs"),
        ("p = Relu(x) n = Neg(x) q = Relu(n) a = Mul(q, tenth) y = Sub(p, a)", "LeakyRelu"),
        ("p = Relu(x) n = Neg(x) q = Relu(n) a = Mul(q, minus_tenth) y = Add(p, a)", "LeakyRelu"),
        ("p = Relu(x) n = Mul(x, minus_two) q = Relu(n) y = Sub(p, q)", "LeakyRelu"),
        ("p = Relu(x) n = Neg(x) q = Relu(n) y = Add(q, p)", "Abs"),
    ],
)
@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_rectifiers(body: str, expected: str, dtype: str) -> None:
    tolerance = {} if dtype == "float" else {"rtol": 1e-2, "atol": 1e-2}
    model = spelled(body, dtype=dtype)
    assert rewritten(model, feed(2, 3, 4, dtype=dtype), **tolerance) == [expected]


@pytest.mark.parametrize(
    "body",
    [
        "c = Greater(x, zero) y = Where(c, zero, x)",
        "c = Less(x, zero) y = Where(c, x, zero)",
        "c = Greater(x, one) a = Mul(x, tenth) y = Where(c, x, a)",
        "c = GreaterOrEqual(x, one) y = Where(c, x, zero)",
        "c = Less(x, one) y = Where(c, zero, x)",
        "c = Greater(x, zero) y = Where(c, x, one)",
        "c = Greater(x, zero) a = Add(x, tenth) y = Where(c, x, a)",
        "c = Greater(x, zero) e = Exp(x) a = Sub(e, two) y = Where(c, x, a)",
        "c = Greater(x, zero) m = Neg(x) e = Exp(m) a = Sub(e, one) y = Where(c, x, a)",
        "c = Equal(x, zero) y = Where(c, x, zero)",
        "a = Mul(x, two) y = Max(x, a)",
        "a = Mul(x, minus_tenth) y = Max(x, a)",
        "a = Add(x, tenth) y = Max(x, a)",
        "a = Mul(x, tenth) y = Min(x, a)",
        "p = Relu(x) n = Add(x, one) q = Relu(n) a = Mul(q, tenth) y = Sub(p, a)",
        "p = Relu(x) q = Relu(x) a = Mul(q, tenth) y = Sub(p, a)",
        "p = Relu(x) n = Neg(x) q = Relu(n) a = Add(q, tenth) y = Sub(p, a)",
    ],
)
def test_not_rectifiers(body: str) -> None:
    untouched(spelled(body), PASS)


@pytest.mark.parametrize(
    "body",
    [
        "c = Greater(x, zero) y = Where(c, x, zero)",
        "c = GreaterOrEqual(x, zero) y = Where(c, x, zero)",
        "c = Less(zero, x) y = Where(c, x, zero)",
        "c = LessOrEqual(x, minus_half) y = Where(c, zero, x)",
    ],
)
def test_what_makes_something_else_of_nan(body: str) -> None:
    """A Where that gives 0 for NaN may stand there for that."""
    untouched(spelled(body), PASS, "NaN would become something else")


@pytest.mark.parametrize(
    "body",
    [
        "c = Less(x, zero) y = Where(c, zero, x)",
        "c = Greater(x, one) y = Where(c, x, zero)",
        "c = Greater(x, zero) a = Mul(x, tenth) y = Where(c, x, a)",
        "c = Less(x, zero) a = Neg(x) y = Where(c, a, x)",
        "c = Greater(x, zero) e = Exp(x) a = Sub(e, one) y = Where(c, x, a)",
        "a = Mul(x, tenth) y = Max(x, a)",
    ],
)
def test_nan_stays_what_it_was(body: str) -> None:
    numbers = np.array([np.nan, -2.0, 2.0], np.float32)
    rewritten(spelled(body), {"x": np.tile(numbers[:, np.newaxis, np.newaxis], (1, 3, 4))})


def test_three_way_maximum() -> None:
    untouched(spelled("a = Mul(x, tenth) y = Max(x, a, zero)"), PASS)


def test_rectifier_whose_comparison_is_read_elsewhere() -> None:
    body = "c = Less(x, zero) y = Where(c, zero, x) y1 = Not(c)"
    untouched(spelled(body, outputs=", bool[n, 3, 4] y1"), PASS, "used elsewhere")


def test_integers_are_left_alone() -> None:
    model = parse(
        """g (int64[n] x) => (int64[n] y) <int64 zero = {0}> {
            c = Less(x, zero) y = Where(c, zero, x)
        }"""
    )
    untouched(model, PASS, "does not gain for int64")


def test_a_where_that_widens() -> None:
    model = parse(
        """g (float[n] x) => (float[1, n] y) <float[1, 1] zero = {0}> {
            c = Less(x, zero) y = Where(c, zero, x)
        }"""
    )
    untouched(model, PASS, "widens")


SLOPED = "c = Greater(x, zero) a = Mul(x, slope) y = Where(c, x, a)"


@pytest.mark.parametrize("shape", [(4,), (3, 1), (1, 1, 4), (3, 4)])
@pytest.mark.parametrize("opset", [9, 13, 18])
def test_slope_by_channel_is_prelu(shape: tuple[int, ...], opset: int) -> None:
    slope = np.linspace(-1, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    assert rewritten(spelled(SLOPED, opset=opset, more={"slope": slope})) == ["PRelu"]


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (5, 3, 4)])
def test_slope_that_may_widen_is_left(shape: tuple[int, ...]) -> None:
    slope = np.ones(shape, np.float32)
    model = spelled(SLOPED + " y0 = ReduceSum(y)", more={"slope": slope})
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("y0", 1, None))
    untouched(model, PASS, "widen")


def test_slope_that_is_computed_is_left() -> None:
    untouched(spelled("d = Exp(x) " + SLOPED.replace("slope", "d")), PASS)


@pytest.mark.parametrize(
    ("exponent", "expected"),
    [(2, ["Mul"]), (0.5, ["Sqrt"]), (-1, ["Reciprocal"]), (-0.5, ["Sqrt", "Reciprocal"])],
)
@pytest.mark.parametrize(("opset", "dtype"), [(7, "float"), (12, "double"), (18, "float16")])
def test_powers(exponent: float, expected: list[str], opset: int, dtype: str) -> None:
    array = np.asarray(exponent, DTYPES[dtype])
    model = spelled("y = Pow(x, e)", opset=opset, dtype=dtype, more={"e": array})
    positive = {"x": np.abs(feed(2, 3, 4, dtype=dtype)["x"]) + DTYPES[dtype](0.5)}
    assert rewritten(model, positive, rtol=1e-2 if dtype == "float16" else 1e-5) == expected


def test_a_power_whose_exponent_has_another_type() -> None:
    model = spelled("y = Pow(x, e)", more={"e": np.asarray(2, np.int64)})
    assert rewritten(model) == ["Mul"]


@pytest.mark.parametrize("exponent", [0, 1, 3, 1.5, -2])
def test_other_powers_stay(exponent: float) -> None:
    untouched(spelled("y = Pow(x, e)", more={"e": np.asarray(exponent, np.float32)}), PASS)


def test_a_power_of_integers_stays() -> None:
    model = parse("g (int32[n] x) => (int32[n] y) <int32 e = {2}> { y = Pow(x, e) }")
    untouched(model, PASS, "does not gain for int32")


def test_a_power_that_widens_stays() -> None:
    model = parse("g (float[n] x) => (float[1, n] y) <float[1, 1] e = {2}> { y = Pow(x, e) }")
    untouched(model, PASS, "widens")


def test_a_square_under_a_mean_stays() -> None:
    model = parse(
        """g (float[n, 4] x) => (float[n, 1] y) <float e = {2}, int64[1] a = {-1}> {
            p = Pow(x, e) y = ReduceMean(p, a)
        }"""
    )
    untouched(model, PASS, "layer normalization")


def test_in_a_branch() -> None:
    model = parse(
        """g (bool c, float[n, 3] x) => (float[n, 3] y)
        <float three = {3}, float six = {6}, float zero = {0}> {
            y = If (c) <
                then_branch = t () => (float[n, 3] t1) {
                    a = Add(x, three) b = Clip(a, zero, six) m = Mul(x, b) t1 = Div(m, six)
                },
                else_branch = e () => (float[n, 3] e1) { e1 = Neg(x) }
            >
        }"""
    )
    feeds = [{"c": np.asarray(flag), **feed(2, 3)} for flag in (True, False)]
    assert "HardSwish" in op_types(optimize(model, "fuse-activations", *feeds))


def test_over_the_boundary_of_a_body() -> None:
    """What the outer graph computes once, a body may run many times."""
    model = parse(
        """g (bool c, float[n, 3] x) => (float[n, 3] y)
        <float three = {3}, float six = {6}, float zero = {0}> {
            a = Add(x, three) b = Clip(a, zero, six)
            y = If (c) <
                then_branch = t () => (float[n, 3] t1) { m = Mul(x, b) t1 = Div(m, six) },
                else_branch = e () => (float[n, 3] e1) { e1 = Neg(x) }
            >
        }"""
    )
    untouched(model, PASS, "boundary")


def test_in_a_function() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (float[n, 3] x) => (float[n, 3] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 18]>
        f (x) => (y) {
            three = Constant <value = float {3}> ()
            six = Constant <value = float {6}> ()
            zero = Constant <value = float {0}> ()
            a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)
        }"""
    )
    # The type of a function's input is not known: each call may have another.
    untouched(model, "fuse-activations", "element type is unknown")


@settings(max_examples=25, deadline=None)
@given(
    alpha=st.floats(0.0625, 4, width=32),
    beta=st.floats(-2, 2, width=32),
    negative=st.booleans(),
    scale=st.sampled_from([0.125, 0.5, 1.0, 6.0, 100.0]),
    gated=st.booleans(),
)
def test_any_clipped_line_keeps_its_numbers(
    alpha: float, beta: float, negative: bool, scale: float, gated: bool
) -> None:
    """``clip(s * (a * x + b), 0, s) / s`` for any a, b and s, and x times that."""
    slope = -alpha if negative else alpha
    constants = {
        "a": np.float32(slope * scale),
        "b": np.float32(beta * scale),
        "low": np.float32(0),
        "s": np.float32(scale),
    }
    body = "p = Mul(x, a) q = Add(p, b) r = Clip(q, low, s) "
    body += "t = Div(r, s) y = Mul(t, x)" if gated else "y = Div(r, s)"
    model = spelled(body, more={name: np.asarray(value) for name, value in constants.items()})
    ops = rewritten(model, feed(2, 3, 4))
    assert "HardSigmoid" in ops or "HardSwish" in ops
    assert len(ops) <= 2


def test_the_runtime_accepts_two_new_nodes_of_one_rewrite() -> None:
    """Node names must stay unique, or the runtime does not load the model."""
    model = spelled(HARD_SWISH[0], opset=12)
    for index, node in enumerate(model.graph.node):
        node.name = f"node_{index}"
    optimized = optimize(model, PASS, feed(1, 3, 4))
    names = [node.name for node in optimized.graph]
    assert len(names) == 2
    assert len(set(names)) == 2
    assert run(model, feed(1, 3, 4))
