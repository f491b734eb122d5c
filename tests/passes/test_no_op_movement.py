"""eliminate-no-ops: operators that move elements, where they move none."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest

from tests.differential import Feed, op_types, optimize, parse, untouched

PASS = "infer-shapes,eliminate-no-ops"
TO_THE_END = (2**31 - 1, 2**63 - 1)


def between(
    line: str,
    x: str = "float[n, 3]",
    y: str | None = None,
    constants: str = "",
    opset: int = 18,
) -> onnx.ModelProto:
    """A model that computes b from a with the given line, between two nodes that stay."""
    return parse(
        f'<ir_version: 8, opset_import: ["" : {opset}]> '
        f"g ({x} x) => ({y or x} y) <{constants}> {{ a = Abs(x) {line} y = Neg(b) }}"
    )


def feed(*shape: int) -> Feed:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def gone(model: onnx.ModelProto, *feeds: Feed) -> None:
    """Assert that nothing is left between the two nodes, and the outputs stay."""
    assert op_types(optimize(model, PASS, *feeds)) == ["Abs", "Neg"]


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        ("float[2, 3]", "2, 3"),
        ("float[2, 3]", "0, 3"),
        ("float[2, 3]", "-1, 3"),
        ("float[n, 3]", "0, 3"),
        ("float[n, 3]", "-1, 3"),
        ("float[n, 3]", "0, -1"),
        ("float[n, m]", "-1, 0"),
        ("float[n, m]", "0, 0"),
    ],
)
@pytest.mark.parametrize("opset", [7, 13, 14])
def test_reshape_to_the_same_shape(x: str, shape: str, opset: int) -> None:
    constants = f"int64[2] s = {{{shape}}}"
    gone(between("b = Reshape(a, s)", x, constants=constants, opset=opset), feed(2, 3))


@pytest.mark.parametrize(
    ("x", "y", "shape"),
    [
        ("float[2, 3]", "float[3, 2]", "int64[2] s = {3, 2}"),
        ("float[2, 3]", "float[6]", "int64[1] s = {-1}"),
        ("float[n, 3]", "float[m, 1]", "int64[2] s = {-1, 1}"),
        ("float[2, 3]", "float[2, 3, 1]", "int64[3] s = {0, 0, 1}"),
    ],
)
def test_reshape_to_another_shape_stays(x: str, y: str, shape: str) -> None:
    untouched(between("b = Reshape(a, s)", x, y, shape), PASS)


def test_reshape_of_a_symbol_to_a_number_stays() -> None:
    untouched(
        between("b = Reshape(a, s)", "float[n, 3]", "float[2, 3]", "int64[2] s = {2, 3}"),
        PASS,
        "not known to stay",
    )


def test_reshape_of_unknown_rank_stays() -> None:
    model = parse(
        """g (float[n] x, int64[k] t) => (float[l, m] y) <int64[2] s = {0, 0}> {
            a = Reshape(x, t) y = Reshape(a, s) }"""
    )
    untouched(model, PASS, "shape is not known")


def test_zero_is_a_size_where_zero_is_allowed() -> None:
    line, constants = "b = Reshape<allowzero = 1>(a, s)", "int64[2] s = {0, 3}"
    gone(between(line, "float[0, 3]", constants=constants), feed(0, 3))
    untouched(between(line, "float[n, 3]", constants=constants), PASS, "not known to stay")
    untouched(between(line, "float[0, 4]", "float[0, 3]", constants), PASS)


def test_reshape_to_the_shape_of_the_input_at_any_rank() -> None:
    model = parse(
        """g (float[n] x, int64[k] t) => (float[l, m] y) {
            a = Reshape(x, t) s = Shape(a) b = Reshape(a, s) y = Neg(b) }"""
    )
    optimized = optimize(model, PASS, {**feed(6), "t": np.array([2, 3])})
    assert op_types(optimized) == ["Reshape", "Neg"]


def test_reshape_to_the_shape_of_something_as_large() -> None:
    gone(between("e = Exp(x) s = Shape(e) b = Reshape(a, s)"), feed(2, 3))


def test_reshape_to_a_part_of_the_shape_stays() -> None:
    model = parse(
        """g (float[n] x, int64[k] t) => (float[l] y) {
            a = Reshape(x, t) s = Shape<start = 0, end = 1>(a) y = Reshape(a, s) }"""
    )
    untouched(model, PASS)


def test_shape_stated_for_an_output_is_no_proof() -> None:
    model = parse("g (float[2, m] x, int64[2] s) => (float[2, m] y) { y = Reshape(x, s) }")
    untouched(model, PASS)


def test_two_reshapes_of_which_the_second_copies() -> None:
    """Merging the two would let the 0 stand for another axis: peers make models that cannot run."""
    model = parse(
        """g (float[n, 4] x) => (float[l, 2, 2] y)
        <int64[3] one = {-1, 2, 2}, int64[3] two = {0, 2, -1}> {
            a = Reshape(x, one) b = Reshape(a, two) y = Neg(b) }"""
    )
    assert op_types(optimize(model, PASS, feed(3, 4), feed(1, 4))) == ["Reshape", "Neg"]


@pytest.mark.parametrize(
    ("x", "perm"),
    [
        ("float[n, m, k]", "<perm = [0, 1, 2]>"),
        ("float[n, 1, 1]", "<perm = [0, 2, 1]>"),
        ("float[1, m, 1]", "<perm = [2, 1, 0]>"),
        ("float[1, m, 1]", ""),
    ],
)
def test_transpose_in_place(x: str, perm: str) -> None:
    gone(
        between(f"b = Transpose{perm}(a)", x),
        feed(*(1 if f == "1" else 2 for f in x[6:-1].split(", "))),
    )


def test_transpose_of_a_vector() -> None:
    gone(between("b = Transpose(a)", "float[n]"), feed(4))


@pytest.mark.parametrize(
    ("x", "y", "perm"),
    [
        ("float[2, 2]", "float[2, 2]", "[1, 0]"),
        ("float[1, n, 3]", "float[n, 1, 3]", "[1, 0, 2]"),
        ("float[n, 1, 2, 1]", "float[1, 2, 1, n]", "[1, 2, 3, 0]"),
    ],
)
def test_transpose_that_moves_stays(x: str, y: str, perm: str) -> None:
    untouched(between(f"b = Transpose<perm = {perm}>(a)", x, y), PASS)


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        ("float[n, 3]", "int64[2] s = {1, 1}"),
        ("float[n, 3]", "int64[1] s = {1}"),
        ("float[n, 3]", "int64[1] s = {3}"),
        ("float[n, 3]", "int64[2] s = {1, 3}"),
        ("float[2, 3]", "int64[2] s = {2, 3}"),
        ("float[n, 3]", "int64[0] s = {}"),
    ],
)
@pytest.mark.parametrize("opset", [8, 13])
def test_expand_to_the_same_shape(x: str, shape: str, opset: int) -> None:
    gone(between("b = Expand(a, s)", x, constants=shape, opset=opset), feed(2, 3))


def test_expand_to_the_shape_of_the_input_and_to_ones() -> None:
    gone(between("s = Shape(a) b = Expand(a, s)"), feed(2, 3))
    ones = "r = Shape(t) s = ConstantOfShape<value = int64[1] {1}>(r) b = Expand(a, s)"
    gone(between(f"t = Shape(a) {ones}"), feed(2, 3))


@pytest.mark.parametrize(
    ("x", "y", "shape"),
    [
        ("float[n, 3]", "float[m, 3]", "int64[2] s = {2, 1}"),
        ("float[n, 3]", "float[1, n, 3]", "int64[3] s = {1, 1, 1}"),
        ("float[1, 3]", "float[2, 3]", "int64[2] s = {2, 3}"),
        ("float", "float[1]", "int64[1] s = {1}"),
    ],
)
def test_expand_that_expands_stays(x: str, y: str, shape: str) -> None:
    untouched(between("b = Expand(a, s)", x, y, shape), PASS)


def test_expand_of_unknown_rank_stays() -> None:
    model = parse(
        """g (float[n] x, int64[k] t) => (float[l] y) <int64[1] s = {1}> {
            a = Reshape(x, t) y = Expand(a, s) }"""
    )
    untouched(model, PASS, "shape is not known")


def test_tile_once() -> None:
    gone(between("b = Tile(a, r)", constants="int64[2] r = {1, 1}"), feed(2, 3))
    untouched(between("b = Tile(a, r)", y="float[n, 6]", constants="int64[2] r = {1, 2}"), PASS)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("opset", [7, 11, 13, 18])
def test_pad_nothing(mode: str, opset: int) -> None:
    if opset < 11:
        gone(between(f'b = Pad<mode = "{mode}", pads = [0, 0, 0, 0]>(a)', opset=opset), feed(2, 3))
    else:
        line, constants = f'b = Pad<mode = "{mode}">(a, p)', "int64[4] p = {0, 0, 0, 0}"
        gone(between(line, constants=constants, opset=opset), feed(2, 3))


def test_pad_nothing_on_some_axes() -> None:
    constants = "int64[2] p = {0, 0}, int64[1] axis = {1}"
    gone(between("b = Pad(a, p, , axis)", constants=constants), feed(2, 3))


@pytest.mark.parametrize("pads", ["0, 1, 0, 0", "0, 1, 0, -1"])
def test_pad_that_moves_stays(pads: str) -> None:
    constants = f"int64[4] p = {{{pads}}}"
    untouched(between("b = Pad(a, p)", y="float[n, m]", constants=constants), PASS)
    untouched(between(f"b = Pad<pads = [{pads}]>(a)", y="float[n, m]", opset=10), PASS)


@pytest.mark.parametrize("end", [3, 5, *TO_THE_END])
@pytest.mark.parametrize("axis", [1, -1])
def test_slice_everything(end: int, axis: int) -> None:
    constants = f"int64[1] s = {{0}}, int64[1] e = {{{end}}}, int64[1] axis = {{{axis}}}"
    gone(between("b = Slice(a, s, e, axis)", constants=constants), feed(2, 3))
    old = f"b = Slice<starts = [0], ends = [{end}], axes = [{axis}]>(a)"
    gone(between(old, opset=9), feed(2, 3))


def test_slice_everything_of_all_axes() -> None:
    end = TO_THE_END[1]
    constants = f"int64[2] s = {{0, -3}}, int64[2] e = {{{end}, 3}}, int64[2] one = {{1, 1}}"
    gone(between("b = Slice(a, s, e, , one)", constants=constants), feed(2, 3))
    gone(between(f"b = Slice<starts = [0, -9], ends = [{end}, 3]>(a)", opset=9), feed(2, 3))


@pytest.mark.parametrize("end", TO_THE_END)
def test_slice_of_a_symbol_to_the_end(end: int) -> None:
    constants = f"int64[1] s = {{0}}, int64[1] e = {{{end}}}, int64[1] axis = {{0}}"
    gone(between("b = Slice(a, s, e, axis)", constants=constants), feed(2, 3), feed(0, 3))


@pytest.mark.parametrize(
    ("start", "end", "axis", "step"),
    [
        (1, 3, 1, 1),
        (0, 2, 1, 1),
        (0, -1, 1, 1),
        (0, 3, 1, 2),
        (-1, -9, 1, -1),
        (-2, 3, 1, 1),
        (1, TO_THE_END[1], 0, 1),
        (0, -1, 0, 1),
    ],
)
def test_slice_that_leaves_something_out_stays(start: int, end: int, axis: int, step: int) -> None:
    constants = (
        f"int64[1] s = {{{start}}}, int64[1] e = {{{end}}}, "
        f"int64[1] axis = {{{axis}}}, int64[1] step = {{{step}}}"
    )
    untouched(between("b = Slice(a, s, e, axis, step)", y="float[m, k]", constants=constants), PASS)


def test_slice_of_a_symbol_up_to_a_number_stays() -> None:
    constants = "int64[1] s = {0}, int64[1] e = {100}, int64[1] axis = {0}"
    model = between("b = Slice(a, s, e, axis)", y="float[m, 3]", constants=constants)
    untouched(model, PASS, "not known to stay")


def test_slice_in_steps_that_are_not_known_stays() -> None:
    model = parse(
        """g (float[3] x, int64[1] t) => (float[k] y) <int64[1] s = {0}, int64[1] e = {3}> {
            y = Slice(x, s, e, s, t) }"""
    )
    untouched(model, PASS)


def test_concat_with_nothing() -> None:
    constants = "float[0, 3] none = {}, float[2, 0] narrow = {}"
    model = between("b = Concat<axis = 0>(none, a, none)", constants=constants)
    gone(model, feed(2, 3))
    gone(
        between("b = Concat<axis = -1>(a, narrow)", "float[2, m]", constants=constants), feed(2, 3)
    )
    three = parse(
        """g (float[n] x) => (float[m] y) <float[0] none = {}> {
            a = Abs(x) y = Concat<axis = 0>(a, none, x) }"""
    )
    optimized = optimize(three, PASS, feed(2), feed(0))
    assert [len(node.inputs) for node in optimized.graph] == [1, 2]


def test_concat_of_nothing_but_nothing() -> None:
    model = parse(
        """g (float[0, 3] x) => (float[0, 3] y) {
            a = Abs(x) b = Concat<axis = 0>(a, x) y = Neg(b) }"""
    )
    gone(model, feed(0, 3))


def test_concat_with_what_is_empty_along_another_axis_stays() -> None:
    model = parse("g (float[n, 0] x) => (float[m, 0] y) { a = Abs(x) y = Concat<axis = 0>(a, x) }")
    untouched(model, PASS)


@pytest.mark.parametrize(
    ("line", "opset"),
    [
        ("b = Split<axis = 1>(a)", 11),
        ("b = Split<axis = 1, split = [3]>(a)", 11),
        ("b = Split<axis = 1>(a, s)", 13),
        ("b = Split<axis = 1, num_outputs = 1>(a)", 18),
    ],
)
def test_split_into_one(line: str, opset: int) -> None:
    gone(between(line, constants="int64[1] s = {3}", opset=opset), feed(2, 3))


def test_split_into_two_stays() -> None:
    untouched(between("b, c = Split<axis = 1>(a)", "float[n, 4]", "float[n, 2]", opset=11), PASS)


@pytest.mark.parametrize("opset", [7, 12])
@pytest.mark.parametrize("axes", ["[0]", "[1, 0]"])
def test_unsqueeze_and_back_by_attributes(opset: int, axes: str) -> None:
    line = f"c = Unsqueeze<axes = {axes}>(a) b = Squeeze<axes = {axes}>(c)"
    gone(between(line, opset=opset), feed(2, 3))


@pytest.mark.parametrize(
    ("there", "back"), [("0", "0"), ("-1", "-1"), ("1", "-2"), ("-3", "0"), ("0, 3", "-1, -4")]
)
def test_unsqueeze_and_back(there: str, back: str) -> None:
    count = there.count(",") + 1
    constants = f"int64[{count}] u = {{{there}}}, int64[{count}] s = {{{back}}}"
    gone(between("c = Unsqueeze(a, u) b = Squeeze(c, s)", constants=constants), feed(2, 3))


@pytest.mark.parametrize(("there", "back"), [("0", "0"), ("-1", "2"), ("0, 2", "2, 0")])
def test_squeeze_and_back(there: str, back: str) -> None:
    count = there.count(",") + 1
    constants = f"int64[{count}] s = {{{there}}}, int64[{count}] u = {{{back}}}"
    model = between("c = Squeeze(a, s) b = Unsqueeze(c, u)", "float[1, n, 1]", constants=constants)
    gone(model, feed(1, 4, 1))


def test_squeeze_of_all_axes_and_back() -> None:
    model = between(
        "c = Squeeze(a) b = Unsqueeze(c, u)", "float[1, 5, 1]", constants="int64[2] u = {0, 2}"
    )
    gone(model, feed(1, 5, 1))


def test_squeeze_of_axes_that_are_not_known_and_back_stays() -> None:
    model = between(
        "c = Squeeze(a) b = Unsqueeze(c, u)",
        "float[1, n, 1]",
        "float[k, l, m]",
        "int64[2] u = {0, 2}",
    )
    untouched(model, PASS, "not known")


def test_squeeze_and_unsqueeze_elsewhere_stay() -> None:
    constants = "int64[1] s = {0}, int64[1] u = {1}"
    line = "c = Unsqueeze(a, u) b = Squeeze(c, s)"
    untouched(between(line, "float[1, n]", "float[m, k]", constants), PASS)
    line = "c = Squeeze(a, s) b = Unsqueeze(c, u)"
    untouched(between(line, "float[1, n]", "float[n, 1]", constants), PASS)


def test_squeeze_of_axes_that_are_an_input_stays() -> None:
    model = parse(
        """g (float[n] x, int64[1] s) => (float[m] y) {
            a = Abs(x) c = Unsqueeze(a, s) y = Squeeze(c, s) }"""
    )
    untouched(model, PASS, "axes is not constant")


def test_squeeze_where_nothing_is_one() -> None:
    gone(between("b = Squeeze(a)", "float[2, 3]"), feed(2, 3))
    untouched(between("b = Squeeze(a)", "float[2, n]", "float[k, m]"), PASS, "may be one")
    untouched(between("b = Squeeze(a)", "float[2, 1]", "float[2]"), PASS)


def test_unsqueeze_of_no_axes() -> None:
    gone(between("b = Unsqueeze(a, u)", constants="int64[0] u = {}"), feed(2, 3))


@pytest.mark.parametrize(
    ("x", "axis"),
    [("float[n, 3]", 1), ("float[n, 3]", -1), ("float[1, m]", 0), ("float[n, 1]", 2)],
)
@pytest.mark.parametrize("opset", [11, 13])
def test_flatten_of_a_matrix(x: str, axis: int, opset: int) -> None:
    shape = (1 if "[1" in x else 2, 1 if "1]" in x else 3)
    gone(between(f"b = Flatten<axis = {axis}>(a)", x, opset=opset), feed(*shape))


@pytest.mark.parametrize(
    ("x", "y", "axis"),
    [
        ("float[n, 3]", "float[1, m]", 0),
        ("float[n, 3]", "float[m, 1]", 2),
        ("float[n, 3, 1]", "float[n, m]", 1),
        ("float[n]", "float[n, 1]", 1),
    ],
)
def test_flatten_that_flattens_stays(x: str, y: str, axis: int) -> None:
    untouched(between(f"b = Flatten<axis = {axis}>(a)", x, y), PASS)


@pytest.mark.parametrize("op", ["DepthToSpace", "SpaceToDepth"])
def test_blocks_of_one(op: str) -> None:
    gone(between(f"b = {op}<blocksize = 1>(a)", "float[n, 4, 2, 3]"), feed(1, 4, 2, 3))
    y = "float[n, c, h, w]"
    untouched(between(f"b = {op}<blocksize = 2>(a)", "float[n, 4, 2, 4]", y), PASS)


def test_gather_everything() -> None:
    line = "b = Gather<axis = 1>(a, i)"
    gone(between(line, constants="int64[3] i = {0, 1, 2}"), feed(2, 3))
    untouched(between(line, constants="int64[3] i = {0, 2, 1}"), PASS)
    untouched(between(line, "float[n, 4]", constants="int64[3] i = {0, 1, 2}"), PASS)
    untouched(between(line, "float[n, m]", constants="int64[3] i = {0, 1, 2}"), PASS)
    untouched(between(line, "float[n, 1]", "float[n]", constants="int64 i = {0}"), PASS)


def test_whole_chain_of_movements_goes_with_what_it_needed() -> None:
    model = between(
        """s = Shape(a) c = Reshape(a, s) d = Unsqueeze(c, z) e = Squeeze(d, z)
        f = Transpose<perm = [0, 1]>(e) b = Flatten(f)""",
        constants="int64[1] z = {0}",
    )
    optimized = optimize(model, PASS, feed(2, 3), feed(0, 3))
    assert op_types(optimized) == ["Abs", "Neg"]
    assert not optimized.graph.initializers


sizes = st.lists(st.integers(1, 3), min_size=1, max_size=3)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(sizes, st.data())
def test_slices_at_random(shape: list[int], data: st.DataObject) -> None:
    """A Slice goes exactly when it gives its input; where it stays it is right anyway."""
    bound = st.integers(-4, 4)
    starts, ends = ([data.draw(bound) for _ in shape] for _ in range(2))
    values = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    expected = values[tuple(slice(*pair) for pair in zip(starts, ends, strict=True))]
    model = between("b = Slice(a, s, e)", f"float{shape}", f"float{list(expected.shape)}")
    for name, numbers in (("s", starts), ("e", ends)):
        array = np.array(numbers, np.int64)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    optimized = optimize(model, PASS, {"x": values})
    assert ("Slice" not in op_types(optimized)) == (expected.shape == values.shape)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(sizes, st.data())
def test_transposes_at_random(shape: list[int], data: st.DataObject) -> None:
    """A Transpose goes only when it moves nothing, and always when it moves axes of size 1."""
    order = data.draw(st.permutations(range(len(shape))))
    moved = [axis for axis, origin in enumerate(order) if axis != origin]
    y = [shape[axis] for axis in order]
    model = between(f"b = Transpose<perm = {list(order)}>(a)", f"float{shape}", f"float{y}")
    optimized = optimize(model, PASS, feed(*shape))
    assert ("Transpose" in op_types(optimized)) == any(shape[axis] != 1 for axis in moved)


def test_reshape_of_opset_1_is_left_alone() -> None:
    model = parse(
        '<ir_version: 3, opset_import: ["" : 4]> '
        "g (float[n, 2] x) => (float[n, 2] y) { y = Reshape<shape = [-1, 2]>(x) }"
    )
    untouched(model, PASS, "the shape is an attribute")


@pytest.mark.parametrize(
    ("line", "extra"),
    [("Reshape(a, s)", ""), ("Expand(a, s)", ""), ("Slice(a, s, e)", ", int64[2] e")],
)
def test_the_shape_that_an_output_is_said_to_have_is_no_proof(line: str, extra: str) -> None:
    """The author called two sizes of the output as they called those of the input."""
    model = parse(
        f"g (float[n, m] x, int64[2] s{extra}) => (float[n, m] y) {{ a = Relu(x) y = {line} }}"
    )
    untouched(model, f"{PASS},fold-shapes,merge-reshapes")
