import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.analysis.values import constant_scalar
from tests.differential import apply, op_types, optimize, parse, untouched

NAME = "simplify-clips"
PASS = f"infer-shapes,{NAME}"


def numbers(dtype: type = np.float32) -> dict[str, np.ndarray]:
    """Numbers on both sides of every bound used here, with the awkward ones."""
    awkward = [-np.inf, np.inf, np.nan, 0.0, -0.0] if np.issubdtype(dtype, np.floating) else []
    return {"x": np.array([*awkward, -100, -3, -1, 0, 1, 2, 3, 5, 6, 7, 100], dtype=dtype)}


def graph(body: str, constants: str = "", dtype: str = "float", opset: int = 18) -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
    g ({dtype}[n] x) => ({dtype}[n] y) <{constants}> {{ {body} }}"""


def bounds(model: ir.Model) -> list[object]:
    (node,) = list(model.graph)
    return [constant_scalar(value) for value in node.inputs[1:]]


# One in place of two


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Relu(x) y = Clip(a, lo, hi)", [0.0, 6.0]),
        ("a = Clip(x, lo, hi) y = Relu(a)", [0.0, 6.0]),
        ("a = Clip(x, one, hi) y = Clip(a, lo, two)", [1.0, 2.0]),
        ("a = Relu(x) y = Min(a, hi)", [0.0, 6.0]),
        ("a = Max(one, x) y = Min(a, two)", [1.0, 2.0]),
        ("a = Min(x, hi) y = Max(a, lo)", [-1.0, 6.0]),
        ("a = Min(x, hi) b = Relu(a) y = Clip(b, one)", [1.0, 6.0]),
        ("a = Clip(x, lo, one) y = Clip(a, two, hi)", [2.0, 2.0]),
        ("a = Clip(x, two, hi) y = Clip(a, lo, one)", [1.0, 1.0]),
        ("a = Clip(x, two, one) y = Clip(a, lo, hi)", [2.0, 1.0]),
    ],
)
def test_two_clamps_become_one_clip(body: str, expected: list[float]) -> None:
    constants = "float lo = {-1}, float one = {1}, float two = {2}, float hi = {6}"
    model = optimize(parse(graph(body, constants)), PASS, numbers())
    assert op_types(model) == ["Clip"]
    assert bounds(model) == expected


def test_relu_of_relu_is_relu() -> None:
    model = optimize(parse(graph("a = Relu(x) b = Relu(a) y = Neg(b)")), PASS, numbers())
    assert op_types(model) == ["Relu", "Neg"]


def test_redundant_first_clamp_goes_and_the_bounds_are_kept() -> None:
    model = parse(graph("a = Relu(x) y = Clip(a, lo, hi)", "float lo = {0}, float hi = {6}"))
    optimized = optimize(model, PASS, numbers())
    assert op_types(optimized) == ["Clip"]
    assert sorted(optimized.graph.initializers) == ["hi", "lo"]


def test_redundant_second_clamp_goes_though_the_first_is_read_elsewhere() -> None:
    model = parse(
        """g (float[n] x) => (float[n] y, float[n] z) <float hi = {6}, float lo = {0}> {
            a = Clip(x, lo, hi) b = Relu(a) y = Neg(b) z = Exp(a)
        }"""
    )
    assert op_types(optimize(model, PASS, numbers())) == ["Clip", "Neg", "Exp"]


def test_an_absent_bound_is_finite() -> None:
    """Clip(x, 0) takes infinity to the largest number, so it is no Relu; nor after a Relu."""
    model = optimize(
        parse(graph("a = Relu(x) y = Clip(a, lo)", "float lo = {-1}")), PASS, numbers()
    )
    assert op_types(model) == ["Clip"]
    untouched(parse(graph("y = Clip(x, lo)", "float lo = {0}")), PASS)


def test_infinite_bounds_of_relu_are_kept() -> None:
    model = parse(graph("a = Relu(x) y = Max(a, half)", "float half = {0.5}"))
    optimized = optimize(model, PASS, numbers())
    assert op_types(optimized) == ["Max"]
    model = parse(graph("a = Max(x, low) y = Max(a, half)", "float low = {-5}, float half = {0.5}"))
    assert op_types(optimize(model, PASS, numbers())) == ["Max"]


@pytest.mark.parametrize("opset", [7, 9, 10])
def test_bounds_as_attributes(opset: int) -> None:
    body = "a = Clip<min = -1.0, max = 6.0>(x) b = Relu(a) y = Clip<max = 2.5>(b)"
    model = optimize(parse(graph(body, opset=opset)), PASS, numbers())
    (node,) = list(model.graph)
    assert (node.attributes["min"].value, node.attributes["max"].value) == (0.0, 2.5)


@pytest.mark.parametrize("opset", [11, 12, 13, 18, 21])
def test_bounds_as_inputs(opset: int) -> None:
    constants = "float lo = {-1}, float hi = {6}"
    model = optimize(
        parse(graph("a = Clip(x, lo, hi) y = Relu(a)", constants, opset=opset)), PASS, numbers()
    )
    assert bounds(model) == [0.0, 6.0]


def test_half_precision() -> None:
    model = parse(
        graph("a = Relu(x) y = Min(a, hi)", dtype="float16"), {"hi": np.array(6, np.float16)}
    )
    model = optimize(model, PASS, numbers(np.float16))
    assert bounds(model) == [0.0, 6.0]


def test_double_from_opset_12() -> None:
    text = graph("a = Max(x, lo) y = Min(a, hi)", "double lo = {-1}, double hi = {6}", "double")
    assert op_types(optimize(parse(text), PASS, numbers(np.float64))) == ["Clip"]


def test_double_before_opset_12_stays() -> None:
    constants = "double lo = {-1}, double hi = {6}"
    text = graph("a = Max(x, lo) y = Min(a, hi)", constants, "double", opset=11)
    untouched(parse(text), PASS, "does not take the element type")


def test_integers_are_exact() -> None:
    big = 2**62 + 1
    model = parse(
        graph("a = Max(x, lo) y = Min(a, hi)", dtype="int64"),
        {"lo": np.array(-3, np.int64), "hi": np.array(big, np.int64)},
    )
    feed = {"x": np.array([big - 1, big, big + 1, -4, 0], np.int64)}
    assert bounds(optimize(model, PASS, feed)) == [-3, big]


def test_short_integers_stay() -> None:
    text = graph("a = Relu(x) y = Relu(a)", dtype="int16")
    untouched(parse(text), PASS, "not one that the runtime clips")


# What a clamp cannot change


@pytest.mark.parametrize(
    "body",
    [
        "a = Sigmoid(x) b = Relu(a) y = Neg(b)",
        "a = Exp(x) b = Relu(a) y = Neg(b)",
        "a = Abs(x) b = Relu(a) y = Neg(b)",
        "a = Mul(x, x) b = Relu(a) y = Neg(b)",
        "a = Tanh(x) b = Clip(a, low, high) y = Neg(b)",
        "a = Sigmoid(x) s = Unsqueeze(a, axis) t = Squeeze(s, axis) b = Relu(t) y = Neg(b)",
        "a = Sigmoid(x) c = Exp(x) d = Concat<axis = 0>(a, c) b = Relu(d) y = Neg(b)",
    ],
)
def test_clamp_of_a_range_inside_goes(body: str) -> None:
    text = graph(body, "float low = {-1}, float high = {1}, int64[1] axis = {0}")
    text = text.replace("(float[n] y)", "(float[m] y)")
    assert not {"Relu", "Clip"} & set(op_types(optimize(parse(text), PASS, numbers())))


def test_clamp_that_cuts_the_range_stays() -> None:
    untouched(parse(graph("a = Sigmoid(x) y = Clip(a, lo)", "float lo = {0.25}")), PASS)
    untouched(parse(graph("a = Tanh(x) y = Relu(a)")), PASS)
    untouched(parse(graph("a = Exp(x) b = Neg(x) c = Concat<axis=0>(a, b) y = Relu(c)")), PASS)


def test_relu_after_the_maximum_of_nothing_stays() -> None:
    """The maximum of no elements is the lowest number, not an element."""
    model = parse(
        "g (float[n, m] x) => (float[n] y) { a = Exp(x) b = ReduceMax<axes=[1], keepdims=0>(a)"
        " y = Relu(b) }".replace("g (", '<ir_version: 8, opset_import: ["" : 13]> g (')
    )
    untouched(model, PASS)


def image() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((1, 2, 5, 5)).astype(np.float32)}


@pytest.mark.parametrize(
    ("pool", "goes"),
    [
        ("MaxPool<kernel_shape = [2, 2], strides = [2, 2]>", True),
        ("MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>", True),
        ("MaxPool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>", False),
        ("MaxPool<kernel_shape = [2, 2], dilations = [3, 3], pads = [1, 1, 1, 1]>", False),
        ("AveragePool<kernel_shape = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1>", True),
        ("GlobalAveragePool", True),
        ("LpPool<kernel_shape = [2, 2]>", False),
    ],
)
def test_range_through_pooling(pool: str, goes: bool) -> None:
    model = parse(
        f"g (float[n, 2, 5, 5] x) => (float[n, 2, h, w] y) {{ a = Relu(x) b = {pool}(a)"
        " c = Relu(b) y = Neg(c) }"
    )
    assert op_types(optimize(model, PASS, image())).count("Relu") == (1 if goes else 2)


def test_clamp_that_makes_an_output_of_another_graphs_value_stays() -> None:
    model = parse(
        """g (bool c, float[n] x) => (float[n] y) {
            a = Sigmoid(x)
            y = If (c) <
                then_branch = t () => (float[n] t1) { t1 = Relu(a) },
                else_branch = e () => (float[n] e1) { e1 = Neg(a) }
            >
        }"""
    )
    untouched(model, PASS, "made elsewhere")


# Relu


def test_max_of_zero_is_relu() -> None:
    model = optimize(parse(graph("y = Max(zero, x)", "float zero = {0}")), PASS, numbers())
    assert op_types(model) == ["Relu"]


def test_max_of_another_number_stays() -> None:
    untouched(parse(graph("y = Max(one, x)", "float one = {1}")), PASS)


def test_max_that_broadcasts_up_stays() -> None:
    model = parse("g (float[n] x) => (float[1, n] y) <float[1, 1] zero = {0}> {y = Max(x, zero)}")
    untouched(model, PASS, "broadcast")


def test_max_of_a_vector_stays() -> None:
    model = parse("g (float[2] x) => (float[2] y) <float[2] v = {0, 0}> {y = Max(x, v)}")
    untouched(model, PASS)


def test_clip_to_infinity_is_relu() -> None:
    model = parse(
        graph("y = Clip(x, lo, hi)"),
        {"lo": np.array(0, np.float32), "hi": np.array(np.inf, np.float32)},
    )
    assert op_types(optimize(model, PASS, numbers())) == ["Relu"]


# What stays


def test_first_result_that_is_read_elsewhere_stays() -> None:
    model = parse(
        """g (float[n] x) => (float[n] y, float[n] z) <float hi = {6}> {
            a = Relu(x) y = Min(a, hi) z = Exp(a)
        }"""
    )
    untouched(model, PASS, "read elsewhere")


def test_first_result_that_is_an_output_stays() -> None:
    model = parse(
        "g (float[n] x) => (float[n] y, float[n] a) <float hi = {6}> {a = Relu(x) y = Min(a, hi)}"
    )
    untouched(model, PASS, "read elsewhere")


def test_bounds_that_are_not_constant_stay() -> None:
    model = parse("g (float[n] x, float lo) => (float[n] y) { a = Relu(x) y = Clip(a, lo) }")
    untouched(model, PASS, "not constant")


def test_bounds_that_are_nan_stay() -> None:
    model = parse(graph("a = Relu(x) y = Min(a, hi)"), {"hi": np.array(np.nan, np.float32)})
    untouched(model, PASS, "NaN")


def test_bound_that_the_user_may_override_stays() -> None:
    model = parse("g (float[n] x, float hi = {6}) => (float[n] y) { a = Relu(x) y = Min(a, hi) }")
    untouched(model, PASS)


def test_in_a_branch() -> None:
    model = parse(
        """g (bool c, float[n] x) => (float[n] y) <float hi = {6}> {
            y = If (c) <
                then_branch = t () => (float[n] t1) { a = Relu(x) t1 = Min(a, hi) },
                else_branch = e () => (float[n] e1) { e1 = Neg(x) }
            >
        }"""
    )
    feeds = [{**numbers(), "c": np.array(flag)} for flag in (True, False)]
    assert "Relu" not in op_types(optimize(model, PASS, *feeds))


def test_in_a_function_the_element_type_is_not_known() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (float[n] x) => (float[n] y) { y = local.f(x) }
        <opset_import: ["" : 18], domain: "local">
        f (x) => (y) { a = Relu(x) y = Relu(a) }"""
    )
    _, outcomes = apply(model, PASS)
    assert any("not known" in each.reason for each in outcomes[NAME].refusals)


CLAMPS: dict[str, Callable[[int, int], str]] = {
    "Relu": lambda a, b: "Relu({})",
    "Min": lambda a, b: f"Min({{}}, c{a})",
    "Max": lambda a, b: f"Max(c{a}, {{}})",
    "Clip": lambda a, b: f"Clip({{}}, c{a}, c{b})",
    "low": lambda a, b: f"Clip({{}}, c{a})",
    "high": lambda a, b: f"Clip({{}}, , c{b})",
}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(CLAMPS)), st.integers(0, 4), st.integers(0, 4)),
        min_size=1,
        max_size=5,
    )
)
def test_any_chain_gives_the_same_numbers(chain: list[tuple[str, int, int]]) -> None:
    names = [*(f"v{index}" for index in range(len(chain) - 1)), "y"]
    body = " ".join(
        f"{name} = {CLAMPS[kind](low, high).format(source)}"
        for (kind, low, high), name, source in zip(chain, names, ["x", *names], strict=False)
    )
    values = (-3.0, 0.0, 2.0, 6.0, float("inf"))
    constants = {f"c{index}": np.array(value, np.float32) for index, value in enumerate(values)}
    model = optimize(parse(graph(body), constants), PASS, numbers())
    assert len(op_types(model)) <= len(chain)


def test_chains_of_two_become_one() -> None:
    constants = {
        f"c{index}": np.array(value, np.float32) for index, value in enumerate((-3.0, 2.0))
    }
    for first, second in itertools.product(CLAMPS, repeat=2):
        one, other = CLAMPS[first](0, 1).format("x"), CLAMPS[second](0, 1).format("a")
        model = optimize(parse(graph(f"a = {one} y = {other}"), constants), PASS, numbers())
        assert len(op_types(model)) == 1, (first, second)
