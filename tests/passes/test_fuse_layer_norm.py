from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.differential import op_types, optimize, parse, untouched

PASS = "infer-shapes,fuse-layer-norm"

DTYPES: Mapping[str, type[Any]] = {"float": np.float32, "float16": np.float16, "double": np.float64}
RANDOM = np.random.default_rng(6)
#: Constants that the bodies below may name.
ARRAYS: Mapping[str, np.ndarray] = {
    "eps": np.asarray(1e-3),
    "two": np.asarray(2.0),
    "one": np.asarray(1.0),
    "half": np.asarray(0.5),
    "minus_half": np.asarray(-0.5),
    "minus_eps": np.asarray(-1e-3),
    "three": np.asarray(3.0),
    "g": RANDOM.uniform(0.5, 2, 4),
    "b": RANDOM.uniform(-1, 1, 4),
    "wide_g": RANDOM.uniform(0.5, 2, (1, 1, 4)),
    "wider_g": RANDOM.uniform(0.5, 2, (1, 1, 1, 1, 4)),
    "row_g": RANDOM.uniform(0.5, 2, (3, 4)),
    "column_g": RANDOM.uniform(0.5, 2, (3, 1)),
    "scalar_g": np.asarray(1.5),
    "channel_g": RANDOM.uniform(0.5, 2, (3, 1, 1)),
    "channel_b": RANDOM.uniform(-1, 1, (1, 3, 1, 1)),
    "huge": np.full(4, 6e4),
}
AXES: Mapping[str, list[int]] = {
    "last": [-1],
    "third": [2],
    "last_two": [-2, -1],
    "third_two": [2, 1],
    "space": [2, 3],
    "volume": [2, 3, 4],
    "second": [1],
    "first_last": [0, 2],
}


def spelled(
    body: str,
    *,
    opset: int = 18,
    dtype: str = "float",
    shape: str = "n, 3, 4",
    inputs: str = "",
    outputs: str = "",
    more: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    arrays = {k: v.astype(DTYPES[dtype]) for k, v in ARRAYS.items() if k in words}
    arrays |= {k: np.asarray(v, np.int64) for k, v in AXES.items() if k in words}
    return parse(
        f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
        f"g ({dtype}[{shape}] x{inputs}) => ({dtype}[{shape}] y{outputs}) {{ {body} }}",
        {**arrays, **(more or {})},
    )


def feed(*shape: int, dtype: str = "float") -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(7).standard_normal(shape) * 3 + 1
    return {"x": numbers.astype(DTYPES[dtype])}


def rewritten(
    model: onnx.ModelProto, *feeds: dict[str, np.ndarray], **tolerance: float
) -> list[str]:
    return op_types(optimize(model, PASS, *(feeds or (feed(2, 3, 4),)), **tolerance))


CENTRED = "m = ReduceMean(x, last) d = Sub(x, m) "
VARIANCE = "p = Pow(d, two) v = ReduceMean(p, last) w = Add(v, eps) s = Sqrt(w) "
TAIL = "q = Div(d, s) h = Mul(q, g) y = Add(h, b)"
LAYER_NORM = CENTRED + VARIANCE + TAIL
RMS = (
    "p = Mul(x, x) v = ReduceMean(p, last) w = Add(v, eps) s = Sqrt(w) q = Div(x, s) y = Mul(q, g)"
)

SPELLINGS = [
    LAYER_NORM,
    LAYER_NORM.replace("Pow(d, two)", "Mul(d, d)"),
    LAYER_NORM.replace("last", "third"),
    LAYER_NORM.replace("(p, last)", "(p, third)"),
    LAYER_NORM.replace("Add(v, eps)", "Add(eps, v)"),
    LAYER_NORM.replace("Sqrt(w)", "Pow(w, half)"),
    LAYER_NORM.replace("q = Div(d, s)", "r = Reciprocal(s) q = Mul(d, r)"),
    LAYER_NORM.replace("q = Div(d, s)", "r = Reciprocal(s) q = Mul(r, d)"),
    LAYER_NORM.replace("q = Div(d, s)", "r = Div(one, s) q = Mul(d, r)"),
    LAYER_NORM.replace("s = Sqrt(w) q = Div(d, s)", "r = Pow(w, minus_half) q = Mul(d, r)"),
    LAYER_NORM.replace("Mul(q, g)", "Mul(g, q)").replace("Add(h, b)", "Add(b, h)"),
    LAYER_NORM.replace("(q, g)", "(q, wide_g)"),
    LAYER_NORM.replace("(q, g)", "(q, scalar_g)"),
    LAYER_NORM.replace("h = Mul(q, g) y", "h0 = Mul(q, g) h = Mul(h0, scalar_g) y"),
    LAYER_NORM.replace("y = Add(h, b)", "z = Add(h, b) z0 = Mul(z, g) y = Add(z0, half)"),
    # As exporters that repeat the subtraction, and its mean, write it.
    CENTRED + "d2 = Sub(x, m) " + VARIANCE.replace("(d, two)", "(d2, two)") + TAIL,
    CENTRED
    + "m2 = ReduceMean(x, third) d2 = Sub(x, m2) "
    + VARIANCE.replace("(d, two)", "(d2, two)")
    + TAIL,
    # As TensorFlow writes it.
    CENTRED + VARIANCE + "r = Reciprocal(s) k = Mul(r, g) xs = Mul(x, k) ms = Mul(m, k) "
    "o = Sub(b, ms) y = Add(xs, o)",
    CENTRED + VARIANCE + "r = Reciprocal(s) k = Mul(g, r) xs = Mul(k, x) ms = Mul(k, m) "
    "o = Sub(b, ms) y = Add(o, xs)",
]


@pytest.mark.parametrize("body", SPELLINGS)
def test_layer_norm(body: str) -> None:
    assert rewritten(spelled(body), feed(2, 3, 4), feed(0, 3, 4)) == ["LayerNormalization"]


@pytest.mark.parametrize("opset", [17, 18, 21, 23])
def test_layer_norm_by_opset(opset: int) -> None:
    body = LAYER_NORM
    if opset < 18:
        body = body.replace("(x, last)", " <axes = [-1]> (x)")
        body = body.replace("(p, last)", " <axes = [2]> (p)")
    assert rewritten(spelled(body, opset=opset)) == ["LayerNormalization"]


def test_parameters_are_used_as_they_are() -> None:
    optimized = optimize(spelled(LAYER_NORM), PASS, feed(2, 3, 4))
    assert set(optimized.graph.initializers) == {"g", "b"}
    assert optimized.graph.node(0).attributes["epsilon"].as_float() == pytest.approx(1e-3)


def test_without_scale_and_bias() -> None:
    body = CENTRED + VARIANCE + "y = Div(d, s)"
    assert rewritten(spelled(body)) == ["LayerNormalization"]


def test_scale_and_bias_that_are_computed_stay_outside() -> None:
    body = (
        "g1 = Exp(g) b1 = Exp(b) "
        + CENTRED
        + VARIANCE
        + "q = Div(d, s) h = Mul(q, g1) y = Add(h, b1)"
    )
    assert rewritten(spelled(body)) == ["Exp", "Exp", "LayerNormalization", "Mul", "Add"]


def test_scale_and_bias_that_may_be_overridden() -> None:
    model = spelled(LAYER_NORM)
    for name in ("g", "b"):
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, 1, [4]))
    other = {"g": np.full(4, 2, np.float32), "b": np.full(4, 3, np.float32)}
    assert rewritten(model, feed(2, 3, 4), {**feed(2, 3, 4), **other}) == ["LayerNormalization"]


@pytest.mark.parametrize("axes", ["last_two", "third_two"])
def test_two_axes(axes: str) -> None:
    body = LAYER_NORM.replace("last", axes)
    assert rewritten(spelled(body)) == ["LayerNormalization"]
    body = body.replace("(q, g)", "(q, row_g)")
    assert rewritten(spelled(body)) == ["LayerNormalization"]
    body = body.replace("row_g", "column_g")
    assert rewritten(spelled(body)) == ["LayerNormalization"]


def test_all_axes() -> None:
    body = LAYER_NORM.replace("(x, last)", "(x)").replace("(p, last)", "(p)")
    assert rewritten(spelled(body, shape="3, 4"), feed(3, 4)) == ["LayerNormalization"]


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 2, 2, 3, 4)])
def test_any_rank(shape: tuple[int, ...]) -> None:
    model = spelled(LAYER_NORM, shape=", ".join(map(str, shape)))
    assert rewritten(model, feed(*shape)) == ["LayerNormalization"]


def test_the_other_axes_may_be_unknown() -> None:
    model = spelled(LAYER_NORM, shape="a, b, 4")
    assert rewritten(model, feed(5, 6, 4), feed(1, 0, 4)) == ["LayerNormalization"]


@pytest.mark.parametrize(
    ("body", "opset", "dtype", "shape", "reason"),
    [
        (LAYER_NORM, 18, "double", "n, 3, 4", "does not gain for double"),
        (LAYER_NORM, 18, "float", "n, 3, k", "shape of the scale is not known"),
        (LAYER_NORM.replace("last", "second"), 18, "float", "n, 4, 4", "not along the last axes"),
        (LAYER_NORM.replace("last", "first_last"), 18, "float", "4, 4, 4", "not along the last"),
        (
            LAYER_NORM.replace("(x, last)", "(x, last_two)"),
            18,
            "float",
            "n, 3, 4",
            "different axes",
        ),
        (RMS, 22, "float", "n, 3, 4", "the opset has no RMSNormalization"),
        (
            LAYER_NORM.replace("ReduceMean(p", "ReduceMean <keepdims = 0> (p"),
            18,
            "float",
            "4, 4",
            "drops its axes",
        ),
        (
            LAYER_NORM.replace("(p, last)", " <noop_with_empty_axes = 1> (p)"),
            18,
            "float",
            "n, 3, 4",
            "does nothing",
        ),
    ],
)
def test_left_alone(body: str, opset: int, dtype: str, shape: str, reason: str) -> None:
    untouched(spelled(body, opset=opset, dtype=dtype, shape=shape), PASS, reason)


def test_before_opset_17() -> None:
    body = LAYER_NORM.replace("(x, last)", " <axes = [-1]> (x)")
    body = body.replace("(p, last)", " <axes = [-1]> (p)")
    untouched(spelled(body, opset=16), PASS, "the opset has no LayerNormalization")


@pytest.mark.parametrize(
    "body",
    [
        LAYER_NORM.replace("Pow(d, two)", "Pow(d, three)"),
        LAYER_NORM.replace("Pow(d, two)", "Mul(d, x)"),
        LAYER_NORM.replace("Pow(d, two)", "Abs(d)"),
        LAYER_NORM.replace("Add(v, eps)", "Add(v, minus_eps)"),
        LAYER_NORM.replace("Add(v, eps)", "Add(v, g)"),
        LAYER_NORM.replace("Add(v, eps)", "Sub(v, eps)"),
        LAYER_NORM.replace("Sqrt(w)", "Exp(w)"),
        LAYER_NORM.replace("Div(d, s)", "Div(x, s)"),
        LAYER_NORM.replace("Div(d, s)", "Div(s, d)"),
        LAYER_NORM.replace("Div(d, s)", "Mul(d, s)"),
        LAYER_NORM.replace("Sub(x, m)", "Sub(m, x)"),
        LAYER_NORM.replace("Sub(x, m)", "Add(x, m)"),
        LAYER_NORM.replace("ReduceMean(x, last)", "ReduceMax(x, last)"),
        LAYER_NORM.replace("ReduceMean(p, last)", "ReduceSum(p, last)"),
    ],
)
def test_other_formulas(body: str) -> None:
    untouched(spelled(body), PASS)


@pytest.mark.parametrize("name", ["m", "d", "p", "v", "w", "s"])
def test_an_intermediate_that_is_needed_elsewhere(name: str) -> None:
    shape = "n, 3, 4" if name in "dp" else "n, 3, 1"
    model = spelled(f"{LAYER_NORM} y1 = Exp({name})", outputs=f", float[{shape}] y1")
    untouched(model, PASS, "used elsewhere")
    untouched(spelled(LAYER_NORM, outputs=f", float[{shape}] {name}"), PASS, "used elsewhere")


@pytest.mark.parametrize(("name", "left"), [("q", ["Mul", "Add"]), ("h", ["Add"])])
def test_a_result_that_is_needed_keeps_what_follows_outside(name: str, left: list[str]) -> None:
    model = spelled(f"{LAYER_NORM} y1 = Exp({name})", outputs=", float[n, 3, 4] y1")
    assert sorted(rewritten(model)) == sorted(["LayerNormalization", *left, "Exp"])


@pytest.mark.parametrize("scale", ["wider_g"])
def test_a_scale_that_widens_stays_outside(scale: str) -> None:
    body = CENTRED + VARIANCE + f"q = Div(d, s) h = Mul(q, {scale}) y = ReduceSum(h)"
    model = spelled(body)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.shape.dim.extend(
        [onnx.TensorShapeProto.Dimension(dim_value=1)] * 5
    )
    ops = rewritten(model)
    assert ops == ["LayerNormalization", "Mul", "ReduceSum"]


def test_a_scale_along_another_axis_stays_outside() -> None:
    body = CENTRED + VARIANCE + "q = Div(d, s) y = Mul(q, column_g)"
    assert rewritten(spelled(body)) == ["LayerNormalization", "Mul"]


def test_a_bias_of_the_whole_shape_stays_outside() -> None:
    body = CENTRED + VARIANCE + "q = Div(d, s) h = Mul(q, g) y = Add(h, row_g)"
    assert rewritten(spelled(body)) == ["LayerNormalization", "Add"]


def test_a_residual_stays_outside() -> None:
    body = CENTRED + VARIANCE + "q = Div(d, s) h = Mul(q, g) y = Add(h, x)"
    assert rewritten(spelled(body)) == ["LayerNormalization", "Add"]


def test_parameters_whose_product_overflows_stay_apart() -> None:
    body = "n = LayerNormalization <axis = -1> (x, huge) y = Mul(n, huge)"
    model = spelled(body, dtype="float16")
    untouched(model, PASS, "not finite")


@pytest.mark.parametrize(
    "body",
    [
        "n = LayerNormalization(x, k) h = Mul(n, c) q = LayerNormalization(x, k) y = Add(h, q)",
        "n = LayerNormalization(x, k) y = Add(n, c)",
    ],
)
def test_merging_must_not_make_the_model_grow(body: str) -> None:
    """A large scale that is shared would be there twice; a number would become a vector."""
    more = {"k": np.full(100, 2, np.float32), "c": np.asarray(3, np.float32)}
    untouched(spelled(body, shape="n, 100", more=more), PASS, "would grow")


def test_nothing_to_normalize() -> None:
    untouched(spelled(CENTRED + VARIANCE + "y = Div(d, s)", shape="n, 0"), PASS, "not known")


@pytest.mark.parametrize("axis", [-1, 2])
def test_what_follows_an_operator_that_is_there_joins_it(axis: int) -> None:
    body = f"n = LayerNormalization <axis = {axis}> (x, g, b) h = Mul(n, wide_g) y = Add(h, half)"
    optimized = optimize(spelled(body), PASS, feed(2, 3, 4))
    assert op_types(optimized) == ["LayerNormalization"]


def test_an_operator_whose_statistics_are_read_is_left() -> None:
    body = "n, m, i = LayerNormalization <axis = -1> (x, g, b) y = Mul(n, wide_g)"
    untouched(spelled(body), PASS, "used elsewhere")


def test_a_scale_that_broadcasts_is_left() -> None:
    body = "n = LayerNormalization <axis = 1> (x, g) y = Mul(n, wide_g)"
    untouched(spelled(body), PASS, "not along the axes of the scale")


@pytest.mark.parametrize(
    "body",
    [
        RMS,
        RMS.replace("Mul(x, x)", "Pow(x, two)"),
        RMS.replace("q = Div(x, s)", "r = Reciprocal(s) q = Mul(x, r)"),
        RMS.replace("Mul(q, g)", "Mul(g, q)"),
        RMS.replace("q = Div(x, s) y = Mul(q, g)", "y = Div(x, s)"),
    ],
)
@pytest.mark.parametrize("opset", [23, 24])
def test_rms_norm(body: str, opset: int) -> None:
    optimized = optimize(spelled(body, opset=opset), PASS, feed(2, 3, 4), feed(0, 3, 4))
    assert op_types(optimized) == ["RMSNormalization"]


def test_rms_norm_has_no_bias() -> None:
    body = RMS.replace("y = Mul(q, g)", "h = Mul(q, g) y = Add(h, b)")
    assert rewritten(spelled(body, opset=23)) == ["RMSNormalization", "Add"]


HALF_RMS = (
    "f = Cast <to = 1> (x) p = Mul(f, f) v = ReduceMean(p, last) w = Add(v, e32) s = Sqrt(w) "
    "q = Div(f, s) c = Cast <to = 10> (q) y = Mul(g, c)"
)


def test_casts_around_a_normalization() -> None:
    """As Llama is exported in float16."""
    epsilon = {"e32": np.asarray(1e-3, np.float32)}
    model = spelled(HALF_RMS, opset=23, dtype="float16", more=epsilon)
    feeds = feed(2, 3, 4, dtype="float16")
    assert rewritten(model, feeds, rtol=2e-3, atol=2e-3) == ["RMSNormalization"]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ([1.5, 2, 0.25, 1], ["LayerNormalization"]),
        ([0.1] * 4, ["Cast", "LayerNormalization", "Cast"]),
    ],
)
def test_casts_stay_around_a_scale_that_float16_cannot_hold(
    scale: list[float], expected: list[str]
) -> None:
    body = "f = Cast <to = 1> (x) n = LayerNormalization(f, k) y = Cast <to = 10> (n)"
    model = spelled(body, dtype="float16", more={"k": np.asarray(scale, np.float32)})
    feeds = feed(2, 3, 4, dtype="float16")
    if len(expected) == 1:
        assert rewritten(model, feeds, rtol=2e-3, atol=2e-3) == expected
    else:
        untouched(model, PASS, "not exact in float16")


def test_casts_of_other_types_stay() -> None:
    body = "f = Cast <to = 1> (x) n = LayerNormalization(f, k) y = Cast <to = 11> (n)"
    more = {"k": np.ones(4, np.float32)}
    untouched(spelled(body, dtype="double", more=more), PASS)


def test_float16() -> None:
    model = spelled(LAYER_NORM, dtype="float16")
    feeds = feed(2, 3, 4, dtype="float16")
    assert rewritten(model, feeds, rtol=1e-2, atol=1e-2) == ["LayerNormalization"]


INSTANCE = (CENTRED + VARIANCE).replace(
    "last", "space"
) + "q = Div(d, s) h = Mul(q, channel_g) y = Add(h, channel_b)"


@pytest.mark.parametrize("opset", [18, 22])
def test_instance_norm(opset: int) -> None:
    model = spelled(INSTANCE, opset=opset, shape="n, 3, h, w")
    feeds = [feed(2, 3, 5, 6), feed(1, 3, 1, 4)]
    assert rewritten(model, *feeds) == ["InstanceNormalization"]


def test_instance_norm_of_a_volume_in_an_old_opset() -> None:
    body = INSTANCE.replace("(x, space)", " <axes = [2, 3, 4]> (x)")
    body = body.replace("(p, space)", " <axes = [-3, -2, -1]> (p)")
    body = body.replace("channel_g", "scalar_g").replace("channel_b", "half")
    model = spelled(body, opset=11, shape="n, 3, 4, 5, w")
    assert rewritten(model, feed(2, 3, 4, 5, 2)) == ["InstanceNormalization"]


def test_instance_norm_with_unknown_channels() -> None:
    model = spelled(INSTANCE, shape="n, c, 5, 6")
    untouched(model, PASS, "shape of the scale is not known")


def test_a_scale_along_space_does_not_join_instance_norm() -> None:
    body = (CENTRED + VARIANCE).replace("last", "space") + "q = Div(d, s) y = Mul(q, g)"
    model = spelled(body, shape="n, 3, 4, 4")
    assert rewritten(model, feed(2, 3, 4, 4)) == ["InstanceNormalization", "Mul"]


SUMMED = "z = Add(x, r) y = LayerNormalization(z, g, b)"


def summed(
    body: str = SUMMED, shape: str = "n, 3, 4", other: str | None = None, **rest: Any
) -> Any:
    return spelled(body, shape=shape, inputs=f", float[{other or shape}] r", **rest)


def both(*shape: int) -> dict[str, np.ndarray]:
    return {**feed(*shape), "r": feed(*shape)["x"][::-1] * np.float32(0.5)}


def test_a_sum_before_layer_norm_is_kept_from_the_runtime() -> None:
    optimized = optimize(summed(), PASS, both(2, 3, 4))
    assert op_types(optimized) == ["Sum", "LayerNormalization"]


def test_a_sum_before_a_spelled_layer_norm() -> None:
    body = "z = Add(x, r) " + LAYER_NORM.replace("(x, ", "(z, ")
    assert op_types(optimize(summed(body), PASS, both(2, 3, 4))) == ["Sum", "LayerNormalization"]


def test_a_sum_before_a_spelled_layer_norm_in_an_old_opset() -> None:
    body = "z = Add(x, r) " + LAYER_NORM.replace("(x, last)", " <axes = [-1]> (z)")
    body = body.replace("(p, last)", " <axes = [-1]> (p)").replace("Sub(x, m)", "Sub(z, m)")
    optimized = optimize(summed(body, opset=13), PASS, both(2, 3, 4))
    assert op_types(optimized)[0] == "Sum"
    assert "LayerNormalization" not in op_types(optimized)


def test_a_sum_in_float16_before_an_operator_is_left() -> None:
    model = spelled(SUMMED, dtype="float16", inputs=", float16[n, 3, 4] r")
    untouched(model, PASS, "in this element type")


def test_sums_are_left_when_asked() -> None:
    untouched(summed(), "infer-shapes,fuse-layer-norm{separate-sums=false}")


@pytest.mark.parametrize(
    ("body", "shape", "other", "reason"),
    [
        (SUMMED, "n, 3, 4", "m, 3, 4", "the shapes differ"),
        (SUMMED, "n, 3, 4", "1, 3, 4", "the shapes differ"),
        (SUMMED, "n, 3, 4, 4", None, "not of rank 3"),
        (SUMMED, "n, k, 4", None, "not a number"),
        (SUMMED + " y1 = Exp(z)", "n, 3, 4", None, "used elsewhere"),
    ],
)
def test_sums_that_the_runtime_leaves(
    body: str, shape: str, other: str | None, reason: str
) -> None:
    outputs = ", float[n, 3, 4] y1" if "y1" in body else ""
    untouched(summed(body, shape, other, outputs=outputs), PASS, reason)


def test_a_sum_that_is_a_graph_output() -> None:
    untouched(summed(outputs=", float[n, 3, 4] z"), PASS, "used elsewhere")


def test_a_branch() -> None:
    model = parse(
        """g (bool c, float[n, 4] x) => (float[n, 4] y)
        <int64[1] last = {-1}, float eps = {0.001}, float[4] k = {1, 2, 3, 4}> {
            y = If (c) <
                then_branch = t () => (float[n, 4] t1) {
                    m = ReduceMean(x, last) d = Sub(x, m) p = Mul(d, d) v = ReduceMean(p, last)
                    w = Add(v, eps) s = Sqrt(w) q = Div(d, s) t1 = Mul(q, k)
                },
                else_branch = e () => (float[n, 4] e1) { e1 = Neg(x) }
            >
        }"""
    )
    feeds = [{"c": np.asarray(flag), **feed(2, 4)} for flag in (True, False)]
    assert op_types(optimize(model, "fuse-layer-norm", *feeds)) == [
        "If",
        "LayerNormalization",
        "Neg",
    ]


def test_a_function_keeps_its_spelling() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (float[n, 4] x) => (float[n, 4] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 18]>
        f (x) => (y) {
            last = Constant <value = int64[1] {-1}> ()
            eps = Constant <value = float {0.001}> ()
            m = ReduceMean(x, last) d = Sub(x, m) p = Mul(d, d) v = ReduceMean(p, last)
            w = Add(v, eps) s = Sqrt(w) y = Div(d, s)
        }"""
    )
    untouched(model, "fuse-layer-norm", "element type is unknown")


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    axes=st.integers(1, 4),
    negative=st.booleans(),
    affine=st.sampled_from(["none", "scalar", "last", "whole"]),
)
def test_any_shape_and_axes(shape: list[int], axes: int, negative: bool, affine: str) -> None:
    axes = min(axes, len(shape))
    along = [-each if negative else len(shape) - each for each in range(1, axes + 1)]
    body = (CENTRED + VARIANCE).replace("last", "along") + "q = Div(d, s) "
    generator = np.random.default_rng(len(shape) + axes)
    parameter: list[int] = {"none": [], "scalar": [1], "last": shape[-1:], "whole": shape[-axes:]}[
        affine
    ]
    body += "y = Identity(q)" if affine == "none" else "h = Mul(q, k) y = Add(h, k)"
    more: dict[str, np.ndarray] = {
        "along": np.asarray(along, np.int64),
        "k": generator.uniform(0.5, 2, parameter).astype(np.float32),
    }
    model = spelled(body, shape=", ".join(map(str, shape)), more=more)
    optimized = optimize(model, PASS, feed(*shape), atol=1e-4)
    assert "ReduceMean" not in op_types(optimized)
    assert all(isinstance(node, ir.Node) for node in optimized.graph)
