import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.analysis.values import static_shape
from tests.differential import op_types, optimize, parse, untouched

NAME = "merge-concats"
PASS = f"infer-shapes,{NAME}"


def feed(*shape: int, names: str = "x") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name in names}


@pytest.mark.parametrize(("outer", "inner"), [(1, 1), (-1, -1), (1, -1), (-1, 1)])
def test_nested_concat_is_flattened(outer: int, inner: int) -> None:
    model = parse(
        f"""g (float[n, k] x, float[n, k] z) => (float[n, m] y) {{
            a = Neg(x) b = Concat<axis = {inner}>(z, a) y = Concat<axis = {outer}>(x, b, z)
        }}"""
    )
    optimized = optimize(model, PASS, feed(2, 3, names="xz"), feed(0, 3, names="xz"))
    assert op_types(optimized) == ["Neg", "Concat"]
    (concat,) = [node for node in optimized.graph if node.op_type == "Concat"]
    assert [value.name for value in concat.inputs if value is not None] == ["x", "z", "a", "z"]


def test_deep_nest_is_flattened() -> None:
    model = parse(
        """g (float[n] x) => (float[m] y) {
            a = Concat<axis=0>(x, x) b = Concat<axis=0>(a, x) c = Concat<axis=0>(x, b, x)
            y = Neg(c)
        }"""
    )
    assert op_types(optimize(model, PASS, feed(2))) == ["Concat", "Neg"]


def test_another_axis_stays() -> None:
    model = parse(
        """g (float[n, n] x) => (float[k, m] y) {
            a = Concat<axis = 0>(x, x) y = Concat<axis = 1>(a, a)
        }"""
    )
    untouched(model, PASS, "different axes")


def test_axes_that_an_unknown_rank_leaves_open_stay() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (float[n] x) => (float[m] y) { y = local.f(x) }
        <opset_import: ["" : 18], domain: "local">
        f (x) => (y) { a = Concat<axis = 0>(x, x) y = Concat<axis = -1>(a, x) }"""
    )
    untouched(model, NAME, "rank is not known")


def test_inner_concat_that_is_read_elsewhere_stays() -> None:
    model = parse(
        """g (float[n] x) => (float[m] y, float[k] z) {
            a = Concat<axis = 0>(x, x) y = Concat<axis = 0>(a, x) z = Neg(a)
        }"""
    )
    untouched(model, PASS, "read elsewhere")


def test_inner_concat_that_is_read_twice_stays() -> None:
    model = parse(
        "g (float[n] x) => (float[m] y) { a = Concat<axis=0>(x, x) y = Concat<axis=0>(a, a) }"
    )
    untouched(model, PASS, "read elsewhere")


def test_inner_concat_that_is_an_output_stays() -> None:
    model = parse(
        """g (float[n] x) => (float[m] y, float[k] a) {
            a = Concat<axis = 0>(x, x) y = Concat<axis = 0>(a, x)
        }"""
    )
    untouched(model, PASS, "read elsewhere")


def test_concat_of_an_outer_graph_stays() -> None:
    model = parse(
        """g (bool c, float[n] x) => (float[m] y) {
            a = Concat<axis = 0>(x, x)
            y = If (c) <
                then_branch = t () => (float[k] t1) { t1 = Concat<axis = 0>(a, x) },
                else_branch = e () => (float[l] e1) { e1 = Neg(x) }
            >
        }"""
    )
    untouched(model, PASS, "different graphs")


def test_in_a_branch_and_in_a_function() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (bool c, float[n] x) => (float[m] y) {
            y = If (c) <
                then_branch = t () => (float[k] t1) {
                    a = Concat<axis = 0>(x, x) t1 = Concat<axis = 0>(a, x)
                },
                else_branch = e () => (float[l] e1) { e1 = local.f(x) }
            >
        }
        <opset_import: ["" : 18], domain: "local">
        f (x) => (y) {
            k = Constant<value = float[1] {5}>() l = Constant<value = float[1] {6}>()
            a = Concat<axis = 0>(k, l) y = Concat<axis = 0>(a, x, a)
        }""".replace("(a, x, a)", "(x, a)")
    )
    feeds = [{**feed(2), "c": np.array(flag)} for flag in (True, False)]
    assert op_types(optimize(model, PASS, *feeds)) == ["If", "Concat", "f"]


# Constants


def test_neighbouring_constants_are_joined() -> None:
    model = parse(
        """g (float[n] x) => (float[m] y)
        <float[1] a = {1}, float[2] b = {2, 3}, float[1] c = {4}, float[1] d = {5}> {
            y = Concat<axis = 0>(a, b, x, c, x, d)
        }"""
    )
    optimized = optimize(model, PASS, feed(2), feed(0))
    (node,) = list(optimized.graph)
    assert len(node.inputs) == 5
    assert static_shape(node.inputs[0]) == (3,)
    assert len(optimized.graph.initializers) == 3


def test_constants_that_are_brought_together_by_flattening_are_joined() -> None:
    model = parse(
        """g (float[n, 2] x) => (float[n, 7] y)
        <float[1, 2] a = {1, 2}, float[1, 3] b = {3, 4, 5}> {
            i = Concat<axis = -1>(x, a) y = Concat<axis = 1>(i, b)
        }"""
    )
    optimized = optimize(model, PASS, feed(1, 2))
    (node,) = list(optimized.graph)
    assert len(node.inputs) == 2


def test_joined_constants_keep_their_type() -> None:
    model = parse(
        "g (float16[n] x) => (float16[m] y) { y = Concat<axis = 0>(a, b, x) }",
        {"a": np.array([1.5], np.float16), "b": np.array([2.5], np.float16)},
    )
    optimize(model, PASS, {"x": np.zeros(2, np.float16)})


def test_constant_that_is_read_elsewhere_stays() -> None:
    model = parse(
        """g (float[n] x) => (float[m] y, float[1] z) <float[1] a = {1}, float[1] b = {2}> {
            y = Concat<axis = 0>(a, b, x) z = Neg(a)
        }"""
    )
    untouched(model, PASS, "read elsewhere")


def test_pieces_of_a_shape_stay() -> None:
    model = parse(
        """g (int64[n] x) => (int64[m] y) <int64[1] a = {1}, int64[1] b = {2}> {
            y = Concat<axis = 0>(x, a, b)
        }"""
    )
    untouched(model, PASS, "put a shape together")


def test_strings_stay() -> None:
    model = parse(
        """g (string[n] x) => (string[m] y) {
            a = Constant<value = string[1] {"p"}>() b = Constant<value = string[1] {"q"}>()
            y = Concat<axis = 0>(a, b, x)
        }"""
    )
    untouched(model, PASS, "no numbers")


def test_constant_that_the_user_may_override_stays() -> None:
    model = parse(
        """g (float[n] x, float[1] a = {1}) => (float[m] y) <float[1] b = {2}> {
            y = Concat<axis = 0>(a, b, x)
        }"""
    )
    untouched(model, PASS)


def test_constants_alone_are_left_to_constant_folding() -> None:
    model = parse(
        "g () => (float[2] y) <float[1] a = {1}, float[1] b = {2}> { y = Concat<axis = 0>(a, b) }"
    )
    untouched(model, PASS)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_nest_gives_the_same_numbers(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 4))
    axis = data.draw(st.integers(-rank, rank - 1))
    values, body = ["x", "c0", "c1"], []
    for index in range(data.draw(st.integers(1, 4))):
        parts = data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=4))
        either = data.draw(st.sampled_from([axis % rank, axis % rank - rank]))
        body.append(f"v{index} = Concat<axis = {either}>({', '.join(parts)})")
        values.append(f"v{index}")
    shape, out = ", ".join(["n"] * rank), ", ".join(f"m{index}" for index in range(rank))
    text = f"g (float[{shape}] x) => (float[{out}] y) {{ {' '.join(body)} y = Neg({values[-1]}) }}"
    constants = {f"c{k}": np.full((2,) * rank, k, np.float32) for k in range(2)}
    optimize(parse(text, constants), PASS, feed(*(2,) * rank))
