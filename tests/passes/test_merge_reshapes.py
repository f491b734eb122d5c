import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.analysis.values import constant_array
from tests.differential import op_types, optimize, parse, untouched

NAME = "merge-reshapes"
PASS = f"infer-shapes,{NAME}"


def feed(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def shape_of(model: ir.Model, operator: str = "Reshape") -> list[int]:
    (node,) = [each for each in model.graph if each.op_type == operator]
    array = constant_array(node.inputs[1])
    assert array is not None
    return [int(size) for size in array]


# Reshape at the end


@pytest.mark.parametrize(
    "view",
    [
        "Reshape(x, s)",
        "Flatten<axis = 2>(x)",
        "Unsqueeze(x, one)",
    ],
)
def test_view_before_a_reshape_goes(view: str) -> None:
    model = parse(
        f"""g (float[n, 3, 4] x) => (float[m, 6] y)
        <int64[2] s = {{-1, 12}}, int64[1] one = {{1}}, int64[2] t = {{-1, 6}}> {{
            a = {view} y = Reshape(a, t)
        }}"""
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 4), feed(0, 3, 4))) == ["Reshape"]


def test_squeeze_before_a_reshape_goes() -> None:
    model = parse(
        """g (float[n, 1, 6] x) => (float[m] y) <int64[1] one = {1}, int64[1] t = {-1}> {
            a = Squeeze(x, one) y = Reshape(a, t)
        }"""
    )
    assert op_types(optimize(model, PASS, feed(2, 1, 6))) == ["Reshape"]


def test_shape_of_the_first_may_be_dynamic() -> None:
    model = parse(
        """g (float[n, 3, 4] x, int64[2] s) => (float[m, 6] y) <int64[2] t = {-1, 6}> {
            a = Reshape(x, s) y = Reshape(a, t)
        }"""
    )
    given_shape = {"s": np.array([4, -1])}
    assert op_types(optimize(model, PASS, {**feed(2, 3, 4), **given_shape})) == ["Reshape"]


def test_long_chain_is_one_reshape() -> None:
    model = parse(
        """g (float[2, 3, 4] x) => (float[6, 4] y)
        <int64[1] all = {-1}, int64[1] one = {1}, int64[2] t = {6, 4}> {
            a = Flatten(x) b = Unsqueeze(a, one) c = Reshape(b, all) d = Unsqueeze(c, one)
            y = Reshape(d, t)
        }"""
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 4))) == ["Reshape"]


def test_copied_axis_becomes_its_number() -> None:
    """The 0 of the second shape refers to what the first one makes."""
    model = parse(
        """g (float[n, 6] x) => (float[4, m] y) <int64[2] s = {4, -1}, int64[2] t = {0, -1}> {
            a = Reshape(x, s) y = Reshape(a, t)
        }"""
    )
    optimized = optimize(model, NAME, feed(2, 6))
    assert op_types(optimized) == ["Reshape"] * 2  # without shapes the 0 is not known
    assert shape_of(optimize(model, PASS, feed(2, 6))) == [4, -1]


def test_copied_axis_that_the_source_has_too_stays_copied() -> None:
    model = parse(
        """g (float[n, 3, 4] x) => (float[n, 2, 6] y)
        <int64[2] s = {0, 12}, int64[3] t = {0, 2, 6}> {
            a = Reshape(x, s) y = Reshape(a, t)
        }"""
    )
    assert shape_of(optimize(model, PASS, feed(5, 3, 4), feed(0, 3, 4))) == [0, 2, 6]


def test_copied_axis_that_moved_is_left_free() -> None:
    model = parse(
        """g (float[3, 4, n] x) => (float[k, 12] y) <int64[1] one = {0}, int64[2] t = {0, 12}> {
            f = Flatten<axis = 2>(x) r = Reshape(f, u) y = Reshape(r, t)
        }""",
        {"u": np.array([-1, 4, 3])},
    )
    assert shape_of(optimize(model, PASS, feed(3, 4, 5), feed(3, 4, 0))) == [-1, 12]


def test_copied_axis_that_is_not_known_next_to_a_free_one_stays() -> None:
    model = parse(
        """g (float[m, n] x, int64[2] s) => (float[k, l] y) <int64[2] t = {0, -1}> {
            a = Reshape(x, s) y = Reshape(a, t)
        }"""
    )
    untouched(model, PASS, "copies an axis")


def test_allowzero_copies_nothing() -> None:
    model = parse(
        """g (float[n, 0] x, int64[2] s) => (float[0, 7] y) <int64[2] t = {0, 7}> {
            a = Reshape(x, s) y = Reshape<allowzero = 1>(a, t)
        }"""
    )
    given_shape = {"s": np.array([0, 0])}
    optimized = optimize(model, PASS, {"x": np.zeros((3, 0), np.float32), **given_shape})
    assert op_types(optimized) == ["Reshape"]


def test_shape_of_the_last_that_is_dynamic_stays() -> None:
    model = parse(
        """g (float[n, 3] x, int64[1] t) => (float[m] y) <int64[1] s = {-1}> {
            a = Reshape(x, s) y = Reshape(a, t)
        }"""
    )
    untouched(model, PASS, "not constant")


def test_value_between_that_is_read_elsewhere_stays() -> None:
    model = parse(
        """g (float[n, 4] x) => (float[m, 2] y, float[k] z) <int64[1] s={-1}, int64[2] t={-1, 2}> {
            a = Reshape(x, s) y = Reshape(a, t) z = Neg(a)
        }"""
    )
    untouched(model, PASS, "read elsewhere")


def test_value_between_that_is_an_output_stays() -> None:
    model = parse(
        """g (float[n, 4] x) => (float[m, 2] y, float[k] a) <int64[1] s={-1}, int64[2] t={-1, 2}> {
            a = Reshape(x, s) y = Reshape(a, t)
        }"""
    )
    untouched(model, PASS, "read elsewhere")


def test_there_and_back_goes() -> None:
    model = parse(
        """g (float[n, 3, 4] x) => (float[n, 3, 4] y) <int64[2] s={0, 12}, int64[3] t={0, 3, 4}> {
            e = Exp(x) a = Reshape(e, s) b = Reshape(a, t) y = Neg(b)
        }"""
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 4), feed(0, 3, 4))) == ["Exp", "Neg"]


def test_there_and_back_from_input_to_output_is_one_reshape() -> None:
    model = parse(
        """g (float[2, 3] x) => (float[2, 3] y) <int64[1] s = {6}, int64[2] t = {2, 3}> {
            a = Reshape(x, s) y = Reshape(a, t)
        }"""
    )
    assert op_types(optimize(model, PASS, feed(2, 3))) == ["Reshape"]


# Squeeze and Unsqueeze


def axis_chain(first: str, second: str, source: str, result: str) -> str:
    return f"""g (float[{source}] x) => (float[{result}] y) {{
        e = Exp(x) a = {first.replace("(", "(e, ")} b = {second.replace("(", "(a, ")} y = Neg(b)
    }}"""


def constants(*numbers: int) -> dict[str, np.ndarray]:
    return {f"k{number}".replace("-", "m"): np.array([number]) for number in numbers}


AXES = {
    **constants(0, 1, 2, -1, -2),
    "k01": np.array([0, 1]),
    "k02": np.array([0, 2]),
    "k13": np.array([1, 3]),
}


@pytest.mark.parametrize(
    ("first", "second", "source", "result", "expected", "axes"),
    [
        ("Unsqueeze(k0)", "Unsqueeze(k2)", "n, m", "1, n, 1, m", "Unsqueeze", [0, 2]),
        ("Unsqueeze(km1)", "Unsqueeze(k1)", "n, m", "n, 1, m, 1", "Unsqueeze", [1, 3]),
        ("Unsqueeze(k1)", "Unsqueeze(k1)", "n", "n, 1, 1", "Unsqueeze", [1, 2]),
        ("Squeeze(k0)", "Squeeze(k1)", "1, n, 1, m", "n, m", "Squeeze", [0, 2]),
        ("Squeeze(km1)", "Squeeze(km2)", "n, 1, m, 1", "n, m", "Squeeze", [1, 3]),
        ("Unsqueeze(k02)", "Squeeze(k0)", "n, m", "n, 1, m", "Unsqueeze", [1]),
        ("Unsqueeze(k1)", "Squeeze(k01)", "1, m, 3", "m, 3", "Squeeze", [0]),
        ("Unsqueeze(k1)", "Squeeze(k1)", "n, m", "n, m", None, []),
        ("Squeeze(k1)", "Unsqueeze(k1)", "n, 1, m", "n, 1, m", None, []),
        ("Squeeze(k02)", "Unsqueeze(k1)", "1, n, 1, m", "n, 1, m", "Squeeze", [0]),
        ("Squeeze(k1)", "Unsqueeze(k13)", "n, 1, m", "n, 1, m, 1", "Unsqueeze", [3]),
    ],
)
def test_axis_changes_merge(
    first: str, second: str, source: str, result: str, expected: str | None, axes: list[int]
) -> None:
    shape = [{"n": 2, "m": 5}.get(size.strip()) or int(size) for size in source.split(",")]
    model = parse(axis_chain(first, second, source, result), AXES)
    optimized = optimize(model, PASS, feed(*shape))
    assert op_types(optimized) == ["Exp", *([expected] if expected else []), "Neg"]
    if expected:
        assert shape_of(optimized, expected) == axes


def test_axes_as_attributes() -> None:
    text = """<ir_version: 8, opset_import: ["" : 11]>
    g (float[n] x) => (float[n, 1, 1] y) {
        a = Unsqueeze<axes = [1]>(x) y = Unsqueeze<axes = [-1]>(a)
    }"""
    optimized = optimize(parse(text), PASS, feed(3))
    (node,) = list(optimized.graph)
    assert list(node.attributes["axes"].value) == [1, 2]


@pytest.mark.parametrize("cast", [True, False])
def test_mask_of_an_attention_stays(cast: bool) -> None:
    """ONNX Runtime fuses attention only if it finds both Unsqueeze nodes."""
    last = "c = Cast<to = 1>(b) s = Sub(one, c)" if cast else "s = Sub(one, b)"
    text = f"""<ir_version: 8, opset_import: ["" : 11]>
    g (float[n, m] x) => (float[n, 1, 1, m] y) <float one = {{1}}> {{
        a = Unsqueeze<axes = [1]>(x) b = Unsqueeze<axes = [2]>(a) {last} y = Relu(s)
    }}"""
    untouched(parse(text), PASS, "mask of an attention")
    assert (
        op_types(optimize(parse(text.replace("Sub(", "Add(")), PASS, feed(2, 3))).count("Unsqueeze")
        == 1
    )


def test_axes_that_only_go_and_others_that_come_become_a_reshape() -> None:
    model = parse(axis_chain("Squeeze(k0)", "Unsqueeze(km1)", "1, n, 3", "n, 3, 1"), AXES)
    optimized = optimize(model, PASS, feed(1, 2, 3), feed(1, 0, 3))
    assert shape_of(optimized) == [-1, 3, 1]


def test_axes_that_go_and_come_around_two_unknown_sizes_stay() -> None:
    model = parse(axis_chain("Squeeze(k0)", "Unsqueeze(km1)", "1, n, m", "n, m, 1"), AXES)
    untouched(model, PASS, "more than one axis")


def test_squeeze_of_all_axes_of_one_element() -> None:
    model = parse(
        "g (float[1, 3, 1] x) => (float[1, 3] y) <int64[1] zero = {0}> {"
        " a = Squeeze(x) y = Unsqueeze(a, zero) }"
    )
    assert op_types(optimize(model, PASS, feed(1, 3, 1))) == ["Squeeze"]


def test_squeeze_of_axes_that_are_not_known_stays() -> None:
    model = parse(
        "g (float[n, 3, m] x) => (float[k, l] y) <int64[1] zero = {0}> {"
        " a = Squeeze(x) y = Unsqueeze(a, zero) }"
    )
    untouched(model, PASS, "not known")


def test_negative_axes_without_a_rank_stay() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (float[n] x) => (float[n, 1, 1] y) { y = local.f(x) }
        <opset_import: ["" : 18], domain: "local">
        f (x) => (y) {
            k = Constant<value_ints = [-1]>() a = Unsqueeze(x, k) y = Unsqueeze(a, k)
        }"""
    )
    untouched(model, NAME, "rank is not known")


def test_in_a_function_and_a_branch() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (bool c, float[n] x) => (float[n, 1, 1] y) <int64[1] one = {1}> {
            y = If (c) <
                then_branch = t () => (float[n, 1, 1] t1) {
                    a = Unsqueeze(x, one) t1 = Unsqueeze(a, one)
                },
                else_branch = e () => (float[n, 1, 1] e1) { e1 = local.f(x) }
            >
        }
        <opset_import: ["" : 18], domain: "local">
        f (x) => (y) {
            k = Constant<value_ints = [1]>() a = Unsqueeze(x, k) y = Unsqueeze(a, k)
        }"""
    )
    feeds = [{**feed(3), "c": np.array(flag)} for flag in (True, False)]
    optimized = optimize(model, PASS, *feeds)
    assert op_types(optimized) == ["If", "Unsqueeze", "f"]
    (function,) = optimized.functions.values()
    assert [node.op_type for node in function].count("Unsqueeze") == 1


# Flatten, Squeeze, Unsqueeze at the end


@pytest.mark.parametrize(
    ("last", "result", "shape"),
    [
        ("Flatten(a)", "n, 12", [0, 12]),
        ("Unsqueeze(a, one)", "n, 1, 2, 6", [0, 1, 2, 6]),
        ("Flatten<axis = 2>(a)", "k, 6", [-1, 6]),
    ],
)
def test_chain_that_ends_otherwise_becomes_a_reshape(
    last: str, result: str, shape: list[int]
) -> None:
    model = parse(
        f"""g (float[n, 3, 4] x) => (float[{result}] y)
        <int64[3] s = {{0, 2, 6}}, int64[1] one = {{1}}> {{ a = Reshape(x, s) y = {last} }}"""
    )
    assert shape_of(optimize(model, PASS, feed(2, 3, 4), feed(0, 3, 4))) == shape


def test_flatten_to_two_unknown_sizes_stays() -> None:
    model = parse(
        """g (float[m, n, 4] x) => (float[m, l] y) <int64[4] s = {0, 0, 2, 2}> {
            a = Reshape(x, s) y = Flatten(a)
        }"""
    )
    untouched(model, PASS, "stands next to one that is not known")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_chain_gives_the_same_numbers(data: st.DataObject) -> None:
    start = data.draw(st.sampled_from([(2, 3, 4), (1, 6, 1), (4,), (1, 1, 1), (2, 1, 2, 1, 2)]))
    symbols = [f"n{size}" if data.draw(st.booleans()) else str(size) for size in start]
    current, body, values = list(start), [], {}
    source = "x"
    for index in range(data.draw(st.integers(2, 5))):
        operator = data.draw(st.sampled_from(["Reshape", "Flatten", "Squeeze", "Unsqueeze"]))
        ones = [axis for axis, size in enumerate(current) if size == 1]
        if operator == "Squeeze" and not ones:
            operator = "Unsqueeze"
        if operator == "Flatten":
            axis = data.draw(st.integers(0, len(current)))
            body.append(f"v{index} = Flatten<axis = {axis}>({source})")
            current = [int(np.prod(current[:axis])), int(np.prod(current[axis:]))]
        else:
            if operator == "Reshape":
                total = int(np.prod(current))
                divisors = [size for size in range(1, total + 1) if total % size == 0]
                head = data.draw(st.sampled_from(divisors))
                sizes = [head, total // head]
                spelled = list(sizes)
                if current and current[0] == head and data.draw(st.booleans()):
                    spelled[0] = 0
                if data.draw(st.booleans()):
                    spelled[1] = -1
                current, array = sizes, spelled
            elif operator == "Squeeze":
                axis = data.draw(st.sampled_from(ones))
                array = [data.draw(st.sampled_from([axis, axis - len(current)]))]
                current = [size for at, size in enumerate(current) if at != axis]
            else:
                axis = data.draw(st.integers(0, len(current)))
                array = [data.draw(st.sampled_from([axis, axis - len(current) - 1]))]
                current.insert(axis, 1)
            values[f"k{index}"] = np.array(array)
            body.append(f"v{index} = {operator}({source}, k{index})")
        source = f"v{index}"
    out = ", ".join(f"o{index}" for index in range(len(current)))
    signature = f"g (float[{', '.join(symbols)}] x) => (float[{out}] y)"
    text = f"{signature} {{ {' '.join(body)} y = Neg({source}) }}"
    optimize(parse(text, values), PASS, feed(*start))
