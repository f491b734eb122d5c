from typing import Any

import numpy as np
import onnx
import pytest

from tests.differential import op_types, optimize, parse, run, untouched

PASS = "infer-shapes,fuse-softmax"


def spelled(
    body: str, *, opset: int = 18, dtype: str = "float", shape: str = "n, 3, 4", more: str = ""
) -> onnx.ModelProto:
    """A model of x to y; `{axes k}` in a body is how the opset wants axes written."""
    return parse(
        f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
        f"g ({dtype}[{shape}] x) => ({dtype}[{shape}] y{more})\n"
        f"<int64[1] last = {{-1}}, int64[1] second = {{1}}, int64[1] third = {{2}},"
        f" int64[2] two = {{1, 2}}> {{ {body} }}"
    )


def feed(*shape: int, dtype: type[Any] = np.float32) -> dict[str, np.ndarray]:
    numbers: np.ndarray = np.random.default_rng(3).standard_normal(shape).astype(dtype)
    return {"x": numbers * dtype(20)}


def rewritten(model: onnx.ModelProto, *shapes: tuple[int, ...]) -> list[str]:
    feeds = [feed(*shape) for shape in shapes or ((2, 3, 4), (0, 3, 4))]
    return op_types(optimize(model, PASS, *feeds))


SOFTMAX = [
    "m = ReduceMax(x, last) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, last) y = Div(e, s)",
    "m = ReduceMax(x, third) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, last) y = Div(e, s)",
    "m = ReduceMax(x, last) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, last) r = Reciprocal(s) "
    "y = Mul(e, r)",
    "m = ReduceMax(x, last) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, last) r = Reciprocal(s) "
    "y = Mul(r, e)",
]
LOG_SOFTMAX = (
    "m = ReduceMax(x, last) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, last) "
    "l = Log(s) y = Sub(d, l)"
)


@pytest.mark.parametrize("body", SOFTMAX)
def test_softmax(body: str) -> None:
    assert rewritten(spelled(body)) == ["Softmax"]


def test_log_softmax() -> None:
    assert rewritten(spelled(LOG_SOFTMAX)) == ["LogSoftmax"]


@pytest.mark.parametrize(("opset", "axis"), [(7, 2), (10, 2), (11, -1), (12, -1), (13, -1)])
def test_axes_as_attributes(opset: int, axis: int) -> None:
    sums = f"ReduceSum <axes = [{axis}]> (e)" if opset < 13 else "ReduceSum(e, last)"
    body = f"m = ReduceMax <axes = [{axis}]> (x) d = Sub(x, m) e = Exp(d) s = {sums} y = Div(e, s)"
    assert rewritten(spelled(body, opset=opset)) == ["Softmax"]


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4, 2, 3)])
def test_any_rank(shape: tuple[int, ...]) -> None:
    model = spelled(SOFTMAX[0], shape=", ".join(map(str, shape)))
    assert rewritten(model, shape) == ["Softmax"]


def test_extremes() -> None:
    far = {
        "x": np.array([[[-3e38, 3e38, 0, 0], [-200, 0, -100, -50], [-np.inf, 0, 1, 2]]], np.float32)
    }
    optimize(spelled(SOFTMAX[0]), PASS, far)


def test_double_and_half() -> None:
    model = spelled(SOFTMAX[0], dtype="double")
    assert op_types(optimize(model, PASS, feed(2, 3, 4, dtype=np.float64))) == ["Softmax"]
    model = spelled(SOFTMAX[0], dtype="float16")
    feeds = feed(2, 3, 4, dtype=np.float16)
    assert op_types(optimize(model, PASS, feeds, rtol=1e-2, atol=1e-2)) == ["Softmax"]


@pytest.mark.parametrize("name", ["third", "last"])
def test_unknown_rank(name: str) -> None:
    """Axis -1 is the last one whatever the rank; axis 2 may not be."""
    body = SOFTMAX[0].replace("last", name).replace("(x, ", "(z, ").replace("y = ", "p = ")
    model = parse(
        f"""g (float[n, 4] x, int64[k] shape) => (float y)
        <int64[1] last = {{-1}}, int64[1] third = {{2}}> {{
            z = Reshape(x, shape) {body} q = Mul(p, p) y = ReduceSum <keepdims = 0> (q)
        }}"""
    )
    if name == "third":
        untouched(model, PASS, "rank is unknown")
        return
    feeds = [
        {**feed(6, 4), "shape": np.array(shape, np.int64)} for shape in ([24], [2, 3, 4], [6, 4])
    ]
    expected = ["Reshape", "Softmax", "Mul", "ReduceSum"]
    assert op_types(optimize(model, PASS, *feeds)) == expected


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (SOFTMAX[0].replace("last", "second"), "not along the last axis"),
        (SOFTMAX[0].replace("(x, last)", "(x, second)"), "not along the last axis"),
        (SOFTMAX[0].replace("(e, last)", "(e, second)"), "not along the last axis"),
        (SOFTMAX[0].replace("(x, last)", "(x, two)"), "not along one axis"),
        (SOFTMAX[0].replace("(x, last)", "(x)"), "not along one axis"),
        ("e = Exp(x) s = ReduceSum(e, last) y = Div(e, s)", "overflows"),
        (
            "m = ReduceMax(x, last) d = Sub(m, x) e = Exp(d) s = ReduceSum(e, last) y = Div(e, s)",
            "overflows",
        ),
        (
            "m = ReduceMin(x, last) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, last) y = Div(e, s)",
            "overflows",
        ),
        (SOFTMAX[0].replace("Div(e, s)", "Div(s, e)"), ""),
        (SOFTMAX[0].replace("ReduceSum", "ReduceMean"), ""),
        (SOFTMAX[0].replace("Div(e, s)", "Div(d, s)"), ""),
        (LOG_SOFTMAX.replace("Sub(d, l)", "Sub(x, l)"), ""),
        (LOG_SOFTMAX.replace("Sub(d, l)", "Add(d, l)"), ""),
    ],
)
def test_left_alone(body: str, reason: str) -> None:
    untouched(spelled(body), PASS, reason)


def test_axes_that_are_dropped() -> None:
    body = (
        "m = ReduceMax <keepdims = 0> (x, last) d = Sub(x, m) e = Exp(d) "
        "s = ReduceSum <keepdims = 0> (e, last) y = Div(e, s)"
    )
    untouched(spelled(body, shape="4, 4"), PASS, "drops its axis")


@pytest.mark.parametrize("name", ["d", "e"])
def test_an_intermediate_that_is_read_elsewhere(name: str) -> None:
    model = spelled(f"{SOFTMAX[0]} y1 = Neg({name})", more=", float[n, 3, 4] y1")
    untouched(model, PASS, "used elsewhere")
    model = spelled(SOFTMAX[0], more=f", float[n, 3, 4] {name}")
    untouched(model, PASS, "used elsewhere")


def test_bfloat16() -> None:
    untouched(spelled(SOFTMAX[0], dtype="bfloat16"), PASS, "does not gain for bfloat16")


@pytest.mark.parametrize("opset", [7, 11, 12, 13, 21])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("s = Softmax {a} (x) y = Log(s)", "LogSoftmax"),
        ("s = LogSoftmax {a} (x) y = Exp(s)", "Softmax"),
    ],
)
def test_logarithm_of_softmax_along_any_axis(
    opset: int, axis: int, body: str, expected: str
) -> None:
    if opset < 11 and axis < 0:
        axis = 1
    model = spelled(body.replace("{a}", f"<axis = {axis}>"), opset=opset)
    numbers = np.random.default_rng(4).standard_normal((2, 3, 4)).astype(np.float32)
    assert op_types(optimize(model, PASS, {"x": numbers})) == [expected]


@pytest.mark.parametrize("opset", [12, 13])
def test_logarithm_of_softmax_along_the_default_axis(opset: int) -> None:
    model = spelled("s = Softmax(x) y = Log(s)", opset=opset)
    numbers = np.random.default_rng(5).standard_normal((2, 3, 4)).astype(np.float32)
    assert op_types(optimize(model, PASS, {"x": numbers})) == ["LogSoftmax"]


def test_logarithm_of_softmax_that_is_read_elsewhere() -> None:
    model = spelled("s = Softmax(x) y = Log(s) y1 = Neg(s)", more=", float[n, 3, 4] y1")
    untouched(model, PASS, "used elsewhere")
    model = spelled("s = Softmax(x) y = Log(s)", more=", float[n, 3, 4] s")
    untouched(model, PASS, "used elsewhere")


def test_where_softmax_underflows_its_logarithm_is_a_number() -> None:
    model = spelled("s = Softmax(x) y = Log(s)")
    numbers = {"x": np.array([[[0, 200, 0, 0]] * 3], np.float32)}
    assert np.isneginf(run(model, numbers)[0]).any()
    optimized = optimize(model, PASS, feed(0, 3, 4))
    assert op_types(optimized) == ["LogSoftmax"]


def test_a_branch() -> None:
    model = parse(
        """g (bool c, float[n, 3] x) => (float[n, 3] y) <int64[1] last = {-1}> {
            y = If (c) <
                then_branch = t () => (float[n, 3] t1) {
                    m = ReduceMax(x, last) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, last)
                    t1 = Div(e, s)
                },
                else_branch = e () => (float[n, 3] e1) { e1 = Neg(x) }
            >
        }"""
    )
    feeds = [{"c": np.asarray(flag), **feed(2, 3)} for flag in (True, False)]
    assert op_types(optimize(model, PASS, *feeds)) == ["If", "Softmax", "Neg"]


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 3, 16, 8), 1), ((2, 3, 16, 8), -3), ((3, 16, 8), 0), ((2, 1, 3, 16, 8, 2), 2)],
)
def test_axes_after_that_of_a_softmax_become_one(
    operator: str, shape: tuple[int, ...], axis: int
) -> None:
    sizes = ", ".join(map(str, shape))
    model = spelled(f"y = {operator} <axis = {axis}> (x)", shape=sizes)
    assert rewritten(model, shape) == ["Reshape", operator, "Reshape"]


@pytest.mark.parametrize("opset", [13, 18, 23])
def test_leading_axes_may_be_unknown_or_empty(opset: int) -> None:
    model = spelled("y = Softmax <axis = 2> (x)", opset=opset, shape="n, m, c, 16, 20")
    shapes = [(2, 3, 4, 16, 20), (0, 3, 4, 16, 20), (1, 1, 1, 16, 20), (2, 0, 3, 16, 20)]
    assert rewritten(model, *shapes) == ["Reshape", "Softmax", "Reshape"]


@pytest.mark.parametrize(
    ("shape", "axis", "opset", "dtype", "reason"),
    [
        ("2, 3, 16, 8", 2, 18, "float", ""),
        ("2, 3, 16, 8", 3, 18, "float", ""),
        ("2, 300, 1, 1", 1, 18, "float", ""),
        ("2, 3, 16, 8", 1, 12, "float", ""),
        ("2, 3, h, 8", 1, 18, "float", "no known length"),
        ("2, 3, 4, 4", 1, 18, "float", "too few numbers"),
        ("2, 3, 16, 8", 1, 18, "float16", "no kernel"),
    ],
)
def test_a_softmax_that_keeps_its_shape(
    shape: str, axis: int, opset: int, dtype: str, reason: str
) -> None:
    model = spelled(f"y = Softmax <axis = {axis}> (x)", opset=opset, dtype=dtype, shape=shape)
    untouched(model, PASS, reason)
