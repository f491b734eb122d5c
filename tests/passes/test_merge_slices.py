import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxopt.passes.merge_slices.slice_algebra import AxisSlice, composed

from onnxopt.rewriting import Refuse
from tests.differential import op_types, optimize, parse, untouched

NAME = "merge-slices"
PASS = f"infer-shapes,{NAME}"
END = 2**31 - 1


def feed(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)}


def ints(**arrays: list[int] | int) -> dict[str, np.ndarray]:
    return {name: np.array(numbers, np.int64) for name, numbers in arrays.items()}


def two_slices(
    source: str, first: list[list[int]], second: list[list[int]], result: str = "a, b, c"
) -> tuple[str, dict[str, np.ndarray]]:
    """Slices given as rows of starts, ends, axes and maybe steps."""
    arrays: dict[str, np.ndarray] = {}
    calls: list[str] = []
    for prefix, rows in (("p", first), ("q", second)):
        names = [f"{prefix}{index}" for index in range(len(rows))]
        arrays |= {name: np.array(row, np.int64) for name, row in zip(names, rows, strict=True)}
        calls.append(", ".join(names))
    dims = ", ".join(result.split(", ")[: len(source.split(","))])
    text = f"""g (float[{source}] x) => (float[{dims}] y) {{
        a = Slice(x, {calls[0]}) y = Slice(a, {calls[1]})
    }}"""
    return text, arrays


# Slice of Slice


@pytest.mark.parametrize(
    ("source", "first", "second"),
    [
        ("n, m", [[1], [3], [0]], [[0], [2], [1]]),
        ("n, m", [[1], [3], [-1]], [[0], [2], [0]]),
        ("n, m", [[1], [END], [0]], [[2], [END], [0]]),
        ("n, m", [[1], [4], [0]], [[1], [2], [0]]),
        ("n, m", [[1], [-1], [0]], [[1], [-1], [0]]),
        ("n, m", [[0], [-1], [0]], [[1], [END], [0]]),
        ("n, m", [[1], [END], [0]], [[0], [-2], [0]]),
        ("n, m", [[1], [END], [0], [2]], [[1], [3], [0], [2]]),
        ("n, m", [[1, 0], [4, 5], [0, 1]], [[1, 1], [2, 3], [1, 0]]),
        ("7, m", [[-3], [END], [0]], [[-2], [-1], [0]]),
        ("7, m", [[5], [0], [0], [-2]], [[0], [2], [0]]),
        ("7, m", [[6], [-8], [0], [-1]], [[6], [-8], [0], [-2]]),
        ("7, m", [[2], [6], [0]], [[9], [12], [0]]),
    ],
)
def test_two_slices_become_one(
    source: str, first: list[list[int]], second: list[list[int]]
) -> None:
    text, arrays = two_slices(source, first, second)
    optimized = optimize(parse(text, arrays), PASS, feed(7, 6))
    assert op_types(optimized) == ["Slice"]


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_slices_of_short_axes(size: int) -> None:
    text, arrays = two_slices("n", [[1], [-1], [0]], [[1], [-1], [0]])
    assert op_types(optimize(parse(text, arrays), PASS, feed(size))) == ["Slice"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([[-3], [END], [0]], [[1], [END], [0]]),
        ([[1], [END], [0]], [[-3], [END], [0]]),
        ([[0], [5], [0]], [[0], [-1], [0]]),
        ([[0], [-1], [0]], [[0], [5], [0]]),
        ([[0], [END], [0], [2]], [[0], [-1], [0]]),
        ([[END], [-END], [0], [-1]], [[0], [2], [0]]),
    ],
)
def test_slices_that_depend_on_the_size_stay(
    first: list[list[int]], second: list[list[int]]
) -> None:
    text, arrays = two_slices("n, m", first, second)
    untouched(parse(text, arrays), PASS, "size of the axis")


def test_bounds_as_attributes() -> None:
    text = """<ir_version: 8, opset_import: ["" : 9]> g (float[n, m] x) => (float[a, b] y) {
        a = Slice<axes = [0], starts = [1], ends = [5]>(x)
        y = Slice<starts = [1, 2], ends = [3, -1]>(a)
    }"""
    optimized = optimize(parse(text), PASS, feed(7, 6))
    (node,) = list(optimized.graph)
    assert list(node.attributes["starts"].value) == [2, 2]
    assert list(node.attributes["ends"].value) == [4, -1]


def test_bounds_that_are_not_constant_stay() -> None:
    model = parse(
        "g (float[n] x, int64[1] p) => (float[a] y) { a = Slice(x, p0, p1) y = Slice(a, p, p1) }",
        ints(p0=[1], p1=[4]),
    )
    untouched(model, PASS, "not constant")


def test_slice_that_is_read_elsewhere_stays() -> None:
    model = parse(
        """g (float[n] x) => (float[a] y, float[b] z) {
            a = Slice(x, one, two) y = Slice(a, zero, one) z = Neg(a) }""",
        ints(zero=[0], one=[1], two=[2]),
    )
    untouched(model, PASS, "read elsewhere")


def test_negative_axis_without_a_rank_stays() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (float[n, m] x) => (float[a, b] y) { y = local.f(x) }
        <opset_import: ["" : 18], domain: "local">
        f (x) => (y) {
            o = Constant<value_ints = [1]>() t = Constant<value_ints = [3]>()
            l = Constant<value_ints = [-1]>() z = Constant<value_ints = [0]>()
            a = Slice(x, o, t, l) y = Slice(a, o, t, z)
        }"""
    )
    untouched(model, NAME, "rank is not known")


def test_in_a_function_and_a_branch() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (bool c, float[n, m] x) => (float[a, b] y) {
            y = If (c) <
                then_branch = t () => (float[d, e] t1) { s = Slice(x, o, u) t1 = Slice(s, o, u) },
                else_branch = e () => (float[f, h] e1) { e1 = local.f(x) }
            >
        }
        <opset_import: ["" : 18], domain: "local">
        f (x) => (y) {
            o = Constant<value_ints = [1]>() t = Constant<value_ints = [5]>()
            a = Slice(x, o, t) y = Slice(a, o, t)
        }""",
        ints(o=[1], u=[5]),
    )
    feeds = [{**feed(7, 2), "c": np.array(flag)} for flag in (True, False)]
    optimized = optimize(model, PASS, *feeds)
    assert op_types(optimized) == ["If", "Slice", "f"]
    (function,) = optimized.functions.values()
    assert [node.op_type for node in function].count("Slice") == 1


BOUND = st.one_of(st.integers(-9, 9), st.sampled_from([END, -END, 2**63 - 1]))
SLICE = st.builds(AxisSlice, BOUND, BOUND, st.sampled_from([1, 1, 2, 3, -1, -2]))


@settings(max_examples=400, deadline=None)
@given(SLICE, SLICE, st.integers(0, 8), st.booleans())
def test_composed_slices_pick_the_same(
    first: AxisSlice, second: AxisSlice, size: int, known: bool
) -> None:
    try:
        merged = composed(first, second, size if known else None)
    except Refuse:
        assert not known
        return
    expected = first.picked(size)[slice(second.start, second.end, second.step)]
    assert list(merged.picked(size)) == list(expected)


FRONT = st.builds(
    AxisSlice, st.integers(0, 5), st.sampled_from([0, 2, 5, END, -1, -3]), st.sampled_from([1, 2])
)


@settings(max_examples=300, deadline=None)
@given(FRONT, FRONT)
def test_composed_slices_without_a_size_hold_for_every_size(
    first: AxisSlice, second: AxisSlice
) -> None:
    try:
        merged = composed(first, second, None)
    except Refuse:
        return
    for size in range(16):
        expected = first.picked(size)[slice(second.start, second.end, second.step)]
        assert list(merged.picked(size)) == list(expected), size


# Gather of Gather


def gathers(
    indices: object, others: object, axes: tuple[int, int] = (0, 0)
) -> tuple[str, dict[str, np.ndarray]]:
    first, second = np.array(indices, np.int64), np.array(others, np.int64)
    rank = 2 + first.ndim - 1 + second.ndim - 1
    dims = ", ".join(f"r{index}" for index in range(rank))
    return (
        f"""g (float[n, m] x) => (float[{dims}] y) {{
            a = Gather<axis = {axes[0]}>(x, i) y = Gather<axis = {axes[1]}>(a, j)
        }}""",
        {"i": first, "j": second},
    )


@pytest.mark.parametrize(
    ("indices", "others", "axes"),
    [
        ([3, 1, 2], [2, 0], (0, 0)),
        ([3, 1, 2], -1, (0, 0)),
        ([3, -1], [[0, 1], [1, 1]], (1, 1)),
        ([3, -1], [1], (-1, 1)),
        ([[3, 1], [2, 0]], [1], (0, 1)),
        ([[3, 1], [2, 0]], 0, (0, 0)),
    ],
)
def test_two_gathers_become_one(indices: object, others: object, axes: tuple[int, int]) -> None:
    text, arrays = gathers(indices, others, axes)
    assert op_types(optimize(parse(text, arrays), PASS, feed(5, 4))) == ["Gather"]


@pytest.mark.parametrize(
    ("indices", "others", "axes", "reason"),
    [
        ([3, 1], [0], (0, 1), "different axes"),
        (3, [0], (0, 0), "different axes"),
        ([3, 1], [2], (0, 0), "out of range"),
        ([[0] * 10], [0] * 20, (0, 0), "would grow"),
    ],
)
def test_gathers_that_stay(
    indices: object, others: object, axes: tuple[int, int], reason: str
) -> None:
    text, arrays = gathers(indices, others, axes)
    untouched(parse(text, arrays), PASS, reason)


def test_gather_with_indices_that_are_not_constant_stays() -> None:
    model = parse(
        """g (float[n] x, int64[m] i) => (float[a] y) <int64[1] j = {0}> {
            a = Gather(x, i) y = Gather(a, j) }"""
    )
    untouched(model, PASS, "not constant")


def test_gather_that_is_read_elsewhere_stays() -> None:
    model = parse(
        """g (float[n] x) => (float[a] y, float[b] z) <int64[2] i = {1, 0}, int64[1] j = {0}> {
            a = Gather(x, i) y = Gather(a, j) z = Neg(a) }"""
    )
    untouched(model, PASS, "read elsewhere")


# Split and Concat


def test_concat_of_all_pieces_is_the_whole() -> None:
    model = parse(
        """g (float[n, 6] x) => (float[n, 6] y) {
            r = Relu(x) a, b = Split<axis = 1>(r, s) c = Concat<axis = -1>(a, b) y = Neg(c)
        }""",
        ints(s=[2, 4]),
    )
    assert op_types(optimize(model, PASS, feed(2, 6), feed(0, 6))) == ["Relu", "Neg"]


@pytest.mark.parametrize(
    ("concat", "size"),
    [
        ("Concat<axis = 1>(b, a)", 6),
        ("Concat<axis = 1>(a, b, b)", 9),
        ("Concat<axis = 0>(a, b)", 3),
    ],
)
def test_concat_of_other_pieces_stays(concat: str, size: int) -> None:
    model = parse(
        f"""g (float[n, 6] x) => (float[a, {size}] y) {{
            r = Relu(x) a, b = Split<axis = 1>(r, s) c = {concat} y = Neg(c)
        }}""",
        ints(s=[3, 3]),
    )
    untouched(model, PASS)


def test_concat_of_the_pieces_of_an_input_that_is_an_output_stays() -> None:
    model = parse(
        """g (float[4] x) => (float[4] y) {
            a, b = Split<axis = 0>(x, s) y = Concat<axis = 0>(a, b)
        }""",
        ints(s=[2, 2]),
    )
    untouched(model, PASS, "made elsewhere")


@pytest.mark.parametrize(
    ("opset", "split"),
    [
        (11, "Split<axis = 0, split = [2, 3]>(c)"),
        (13, "Split<axis = 0>(c, s)"),
        (18, "Split<axis = -1>(c, s)"),
    ],
)
def test_split_of_concat_gives_the_inputs(opset: int, split: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[5] x, float[2] p, float[3] q) => (float[2] y, float[3] z) {{
            a = Relu(p) c = Concat<axis = 0>(a, q) d, e = {split} y = Neg(d) z = Neg(e)
        }}"""
    arrays = ints(s=[2, 3]) if "(c, s)" in split else {}
    feeds = {"p": np.ones(2, np.float32), "q": np.ones(3, np.float32), **feed(5)}
    optimized = optimize(parse(text, arrays), PASS, feeds)
    assert op_types(optimized) == ["Relu", "Neg", "Neg"]


def test_equal_split_of_concat_gives_the_inputs() -> None:
    model = parse(
        """g (float[n, 2] x) => (float[n, 2] y, float[n, 2] z) {
            a = Relu(x) b = Neg(x) c = Concat<axis = 1>(a, b)
            d, e = Split<axis = 1, num_outputs = 2>(c) y = Exp(d) z = Exp(e)
        }"""
    )
    assert op_types(optimize(model, PASS, feed(3, 2))) == ["Relu", "Neg", "Exp", "Exp"]


def test_split_of_concat_at_other_places_stays() -> None:
    model = parse(
        """g (float[n, 2] x) => (float[n, 1] y, float[n, 3] z) {
            c = Concat<axis = 1>(x, x) d, e = Split<axis = 1>(c, s) y = Exp(d) z = Exp(e)
        }""",
        ints(s=[1, 3]),
    )
    untouched(model, PASS, "are not the inputs")


def test_split_into_outputs_that_are_made_elsewhere_stays() -> None:
    model = parse(
        """g (float[n, 2] x) => (float[n, 2] y, float[n, 2] z) {
            a = Relu(x) c = Concat<axis = 1>(a, a) y, z = Split<axis = 1, num_outputs = 2>(c)
        }"""
    )
    untouched(model, PASS, "made elsewhere")


@pytest.mark.parametrize(
    ("slice_of", "expected"),
    [
        ("Slice(c, k0, k2, k1)", ["Relu", "Neg", "Exp"]),
        ("Slice(c, k2, k5, k1)", ["Relu", "Neg", "Exp"]),
        ("Slice(c, km3, kend, k1)", ["Relu", "Neg", "Exp"]),
        ("Slice(c, k3, k4, k1)", ["Relu", "Neg", "Slice", "Exp"]),
        ("Slice(c, k01, k12)", ["Relu", "Slice", "Exp"]),
    ],
)
def test_slice_of_concat_takes_the_input(slice_of: str, expected: list[str]) -> None:
    constants = ints(
        k0=[0], k1=[1], k2=[2], k3=[3], k4=[4], k5=[5], km3=[-3], kend=[END], k01=[0, 1],
        k12=[1, 2],
    )  # fmt: skip
    model = parse(
        f"""g (float[n, 2] x, float[n, 3] w) => (float[a, b] y, float[n, 5] z) {{
            a = Relu(x) b = Neg(w) c = Concat<axis = 1>(a, b) s = {slice_of} y = Exp(s)
            z = Abs(c)
        }}""",
        constants,
    )
    feeds = {**feed(4, 2), "w": np.ones((4, 3), np.float32)}
    optimized = optimize(model, PASS, feeds)
    rest = [name for name in op_types(optimized) if name not in ("Concat", "Abs")]
    assert [name for name in rest if name != "Neg"] == [n for n in expected if n != "Neg"]
    assert "Concat" in op_types(optimized)  # it is read elsewhere


@pytest.mark.parametrize(
    ("slice_of", "reason"),
    [
        ("Slice(c, k1, k3, k1)", "several inputs"),
        ("Slice(c, k4, k0, k1, km1)", "not known"),
        ("Slice(c, k3, k3, k1)", "not known"),
    ],
)
def test_slice_of_concat_that_stays(slice_of: str, reason: str) -> None:
    model = parse(
        f"""g (float[n, 2] x) => (float[a, b] y) {{
            c = Concat<axis = 1>(x, x) y = {slice_of}
        }}""",
        ints(k0=[0], k1=[1], k3=[3], k4=[4], km1=[-1]),
    )
    untouched(model, PASS, reason)


def test_slice_from_the_known_front_of_a_concat() -> None:
    model = parse(
        """g (float[3] x, float[n] w) => (float[a] y, float[b] z) {
            r = Relu(x) c = Concat<axis = 0>(r, w) s = Slice(c, k0, k3) y = Exp(s)
            t = Slice(c, k3, kend) z = Exp(t)
        }""",
        ints(k0=[0], k3=[3], kend=[END]),
    )
    feeds = {**feed(3), "w": np.ones(2, np.float32)}
    assert op_types(optimize(model, PASS, feeds)).count("Slice") == 1


# Slices that are a Split


@pytest.mark.parametrize("opset", [9, 11, 13, 18])
def test_slices_that_cut_an_axis_become_a_split(opset: int) -> None:
    pieces = [(0, 2), (2, 3), (-3, END)]
    if opset < 10:
        slices = [f"Slice<axes=[1], starts=[{start}], ends=[{end}]>(r)" for start, end in pieces]
        constants = {}
    else:
        slices = [f"Slice(r, s{index}, e{index}, one)" for index in range(3)]
        constants = ints(one=[1])
        for index, (start, end) in enumerate(pieces):
            constants |= ints(**{f"s{index}": [start], f"e{index}": [end]})
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[n, 6] x) => (float[n, 2] p, float[n, 1] q, float[n, 3] o) {{
            r = Relu(x) b = {slices[1]} q = Neg(b) a = {slices[0]} p = Neg(a) o = {slices[2]}
        }}"""
    optimized = optimize(parse(text, constants), PASS, feed(3, 6), feed(0, 6))
    assert sorted(op_types(optimized)) == ["Neg", "Neg", "Relu", "Split"]


@pytest.mark.parametrize(
    ("first", "second"), [((0, 2), (3, 6)), ((0, 4), (3, 6)), ((0, 2), (2, 5)), ((0, 3), (0, 6))]
)
def test_slices_that_leave_out_or_repeat_stay(
    first: tuple[int, int], second: tuple[int, int]
) -> None:
    model = parse(
        """g (float[n, 6] x) => (float[n, a] y, float[n, b] z) {
            y = Slice(x, s0, e0, one) z = Slice(x, s1, e1, one)
        }""",
        ints(one=[1], s0=[first[0]], e0=[first[1]], s1=[second[0]], e1=[second[1]]),
    )
    untouched(model, PASS)


def test_slices_with_steps_stay() -> None:
    model = parse(
        """g (float[n, 6] x) => (float[n, a] y, float[n, b] z) {
            y = Slice(x, s0, e, one, two) z = Slice(x, one, e, one, two)
        }""",
        ints(one=[1], two=[2], s0=[0], e=[6]),
    )
    untouched(model, PASS)


def test_slices_of_an_axis_of_unknown_size_stay() -> None:
    model = parse(
        """g (float[n, m] x) => (float[n, a] y, float[n, b] z) {
            y = Slice(x, s0, two, one) z = Slice(x, two, e, one)
        }""",
        ints(one=[1], two=[2], s0=[0], e=[END]),
    )
    untouched(model, PASS, "size of the axis")


def test_merged_model_has_values_of_known_type() -> None:
    text, arrays = two_slices("n, m", [[1], [3], [0]], [[0], [2], [1]])
    optimized = optimize(parse(text, arrays), PASS, feed(7, 6))
    assert {value.dtype for node in optimized.graph for value in node.outputs} == {
        ir.DataType.FLOAT
    }


def test_slice_that_goes_backwards_to_an_open_end_stays() -> None:
    """The specification and ONNX Runtime do not agree on what that is."""
    model = parse(
        """g (float[7] x) => (float[m] y)
        <int64[1] s = {1}, int64[1] e = {5}, int64[1] a = {0}, int64[1] l = {-1},
         int64[1] o = {9223372036854775807}, int64[1] b = {-1}> {
            u = Slice(x, s, e, a) v = Slice(u, l, o, a, b) y = Neg(v)
        }"""
    )
    untouched(model, NAME, "not agreed on")
