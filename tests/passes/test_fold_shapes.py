from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from onnxopt.analysis.values import constant_array
from onnxopt.model import to_proto
from tests.differential import apply, op_types, optimize, parse, run, untouched

PASS = "infer-shapes,fold-shapes"


def feed(*shape: int, **others: Any) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return {"x": x, **{name: np.asarray(value) for name, value in others.items()}}


def target(model: ir.Model, op_type: str = "Reshape") -> list[int] | None:
    """The constant shape input of the only node of an operator."""
    [node] = [node for node in model.graph.all_nodes() if node.op_type == op_type]
    array = constant_array(node.inputs[1])
    return None if array is None else [int(size) for size in array]


def header(opset: int) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]>'


# The arithmetic of exporters


def split_heads(opset: int) -> onnx.ModelProto:
    """``x.view(b, s, 4, 2).transpose(1, 2)``, and the way back to (b, s, 8)."""
    axes = opset < 13
    unsqueeze = "Unsqueeze<axes = [0]>({})" if axes else "Unsqueeze({}, zero)"
    return parse(
        f"""{header(opset)} g (float[batch, sequence, 8] x) => (float[batch, sequence, 8] y)
        <int64[1] zero = {{0}}, int64 i0 = {{0}}, int64 i1 = {{1}}, int64[1] heads = {{4}},
         int64[1] size = {{2}}, int64[1] all = {{8}}> {{
            shape = Shape(x)
            b0 = Gather<axis = 0>(shape, i0)
            b = {unsqueeze.format("b0")}
            shape2 = Shape(x)
            s0 = Gather<axis = 0>(shape2, i1)
            s = {unsqueeze.format("s0")}
            t = Concat<axis = 0>(b, s, heads, size)
            four = Reshape(x, t)
            moved = Transpose<perm = [0, 2, 1, 3]>(four)
            a = Neg(moved)
            back = Transpose<perm = [0, 2, 1, 3]>(a)
            shape3 = Shape(a)
            b1 = Gather<axis = 0>(shape3, i0)
            b2 = {unsqueeze.format("b1")}
            t2 = Concat<axis = 0>(b2, s, all)
            y = Reshape(back, t2)
        }}"""
    )


@pytest.mark.parametrize("opset", [7, 11, 13, 15, 18, 21])
def test_heads_split_and_merged_with_two_dynamic_sizes(opset: int) -> None:
    feeds = [feed(1, 3, 8), feed(3, 1, 8), feed(2, 5, 8), feed(0, 4, 8)]
    optimized = optimize(split_heads(opset), PASS, *feeds)
    # The runtime puts -1 for two dynamic sizes when it loads the original, and then fails here.
    assert run(to_proto(optimized), feed(2, 0, 8))[0].shape == (2, 0, 8)
    assert op_types(optimized) == ["Reshape", "Transpose", "Neg", "Transpose", "Reshape"]
    targets = [
        constant_array(node.inputs[1]) for node in optimized.graph if node.op_type == "Reshape"
    ]
    assert [list(each) for each in targets if each is not None] == [[0, 0, 4, 2], [0, 0, 8]]


def reshape(shape: str, elements: str, given: str = "x", more: str = "") -> onnx.ModelProto:
    """Reshape of x (or of a value made from it) to a Concat of numbers and sizes d0, d1, ... of x.

    A number stands for itself; ``d0*3`` is a product.
    """
    lines, names = [], []
    for position, element in enumerate(elements.split()):
        name = f"e{position}"
        first, *rest = element.split("*")
        if first.startswith("d"):
            lines.append(f"i{name} = Constant<value_ints = [{first[1:]}]>()")
            lines.append(f"{name}_0 = Gather(shape, i{name})")
        else:
            lines.append(f"{name}_0 = Constant<value_ints = [{first}]>()")
        for factor, each in enumerate(rest):
            if each.startswith("d"):
                lines.append(f"j{name}{factor} = Constant<value_ints = [{each[1:]}]>()")
                lines.append(f"k{name}{factor} = Gather(shape, j{name}{factor})")
            else:
                lines.append(f"k{name}{factor} = Constant<value_ints = [{each}]>()")
            lines.append(f"{name}_{factor + 1} = Mul({name}_{factor}, k{name}{factor})")
        names.append(f"{name}_{len(rest)}")
    rank = len(names)
    out = ", ".join(f"o{axis}" for axis in range(rank))
    return parse(
        f"""g (float[{shape}] x) => (float[{out}] y) {{
            shape = Shape(x)
            {more}
            {chr(10).join(lines)}
            t = Concat<axis = 0>({", ".join(names)})
            y = Reshape({given}, t)
        }}"""
    )


@pytest.mark.parametrize(
    ("shape", "elements", "expected", "sizes"),
    [
        # Copies at the same place: good for empty tensors too.
        ("n, 3, 4", "d0 12", [0, 12], [(2, 3, 4), (0, 3, 4), (1, 3, 4)]),
        ("n, s, 6", "d0 d1 3 2", [0, 0, 3, 2], [(2, 3, 6), (0, 3, 6), (3, 0, 6), (1, 1, 6)]),
        # One size that is not kept, among numbers.
        ("n, s, 6", "d0*d1 6", [-1, 6], [(2, 3, 6), (0, 3, 6), (3, 0, 6)]),
        ("n, 6", "d0*3 2", [-1, 2], [(2, 6), (0, 6), (1, 6)]),
        ("2, n", "d1 2", [-1, 2], [(2, 3), (2, 0)]),
        # A -1 that was there stays, or turns out to be a copy or a number.
        ("n, s, 6", "d0 -1 3 2", [0, 0, 3, 2], [(2, 3, 6), (1, 1, 6)]),
        ("n, 4, 6", "d0 -1", [0, 24], [(2, 4, 6)]),
        ("n, s, 6", "d0 -1", [0, -1], [(2, 3, 6), (3, 1, 6)]),
    ],
)
def test_computed_targets_become_constant(
    shape: str, elements: str, expected: list[int], sizes: list[tuple[int, ...]]
) -> None:
    optimized = optimize(reshape(shape, elements), PASS, *(feed(*each) for each in sizes))
    assert op_types(optimized)[-1] == "Reshape"
    assert "Concat" not in op_types(optimized)
    assert target(optimized) == expected


@pytest.mark.parametrize(
    ("shape", "elements", "reason"),
    [
        # As [0, -1, 2] it would fail where s is 0; as it is it gives an empty tensor.
        ("s, n, 6", "d0 d1*3 2", "where no other is 0"),
        ("s, n, 6", "d1 d0 6", "more than one dimension"),
        ("s, n, 6", "d0*2 d1*3", "more than one dimension"),
        # Where s is 0, the first element asks for a copy, and the -1 is worked out all the same.
        ("s, n, 6", "d1*3 -1 2", "more than one dimension"),
        ("n, 6", "d0 -1 -1", "two dimensions to be inferred"),
    ],
)
def test_computed_targets_that_no_constant_replaces(shape: str, elements: str, reason: str) -> None:
    untouched(reshape(shape, elements), "fold-shapes", reason)


def test_a_vector_of_unknown_length_stays() -> None:
    model = parse("g (float[n, 6] x, int64[k] t) => (y) { a = Neg(t) y = Reshape(x, a) }")
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    untouched(model, PASS, "number of dimensions")


@pytest.mark.parametrize("size", [-1, 0, 4, 8])
def test_one_number_of_unknown_origin_is_inferred(size: int) -> None:
    model = parse(
        """g (float[n, k] x, int64[1] u) => (float[a, b] y) <int64[1] two = {2}> {
            t = Concat<axis = 0>(u, two) y = Reshape(x, t)
        }"""
    )
    rows = 8 if size in (0, 8) else 4
    optimized = optimize(model, PASS, feed(rows, 16 // rows, u=[size]))
    assert target(optimized) == [-1, 2]


def test_two_numbers_of_unknown_origin_stay() -> None:
    model = parse(
        """g (float[n, k] x, int64[2] u) => (float[a, b, 2] y) <int64[1] two = {2}> {
            t = Concat<axis = 0>(u, two) y = Reshape(x, t)
        }"""
    )
    untouched(model, PASS, "more than one dimension")


def test_a_size_that_cannot_be_0_elsewhere_lets_another_be_inferred() -> None:
    text = """g (float[s, n, 6] x) => (float[s, m, 2] y{out}) <
        int64[1] two = {{2}}, int64[1] k = {{3}},
        int64 i0 = {{0}}, int64 i1 = {{1}}, int64[1] zero = {{0}}, int64[2] flat = {{0, -1}}> {{
            shape = Shape(x)
            s0 = Gather(shape, i0)
            n0 = Gather(shape, i1)
            s1 = Unsqueeze(s0, zero)
            n1 = Unsqueeze(n0, zero)
            m = Mul(n1, k)
            t = Concat<axis = 0>(s1, m, two)
            y = Reshape(x, t)
            {more}
        }}"""
    feeds = [feed(2, 3, 6), feed(1, 1, 6), feed(3, 0, 6)]
    untouched(parse(text.format(out="", more="")), PASS, "where no other is 0")
    for more in ("z = Reshape(x, flat)", "z = Gather(x, i0)"):
        out = ", float[s, f] z" if "Reshape" in more else ", float[n, 6] z"
        optimized = optimize(parse(text.format(out=out, more=more)), PASS, *feeds)
        [node] = [node for node in optimized.graph if node.outputs[0].name == "y"]
        array = constant_array(node.inputs[1])
        assert array is not None
        assert array.tolist() == [0, -1, 2]
    # What nobody needs does not run, and tells nothing.
    dead = parse(text.format(out="", more="z = Reshape(x, flat)"))
    untouched(dead, PASS, "where no other is 0")


def test_what_a_branch_needs_tells_nothing_of_the_rest() -> None:
    model = parse(
        """g (float[s, n, 6] x, bool c) => (float[s, m, 2] y, float[s, f] z) <int64[1] two = {2},
        int64[1] k = {3}, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[2] flat = {0, -1}> {
            shape = Shape(x)
            s1 = Gather(shape, i0)
            n1 = Gather(shape, i1)
            m = Mul(n1, k)
            t = Concat<axis = 0>(s1, m, two)
            y = Reshape(x, t)
            z = If (c) <
                then_branch = a () => (float[s, f] p) { p = Reshape(x, flat) },
                else_branch = b () => (float[s, f] q) { q = Flatten(x) }
            >
        }"""
    )
    untouched(model, PASS, "where no other is 0")


@pytest.mark.parametrize("opset", [14, 18, 21])
def test_allowzero(opset: int) -> None:
    text = f"""{header(opset)} g (float[n, SIZES] x) => (float[n, a, b, c] y) <
        int64[2] c = {{3, 2}},
        int64[1] i = {{0}}, int64[1] second = {{SECOND}}> {{
            shape = Shape(x)
            n = Gather(shape, i)
            t = Concat<axis = 0>(n, second, c)
            y = Reshape<allowzero = 1>(x, t)
        }}"""
    model = parse(text.replace("SIZES", "1, 6").replace("SECOND", "1"))
    optimized = optimize(model, PASS, feed(2, 1, 6), feed(0, 1, 6))
    assert target(optimized) == [0, 1, 3, 2]
    assert "allowzero" not in optimized.graph[-1].attributes
    model = parse(text.replace("SIZES", "0, 6").replace("SECOND", "0"))
    assert target(optimize(model, PASS, feed(2, 0, 6), feed(0, 0, 6))) == [0, 0, 3, 2]
    untouched(parse(text.replace("SIZES", "6, 0").replace("SECOND", "0")), PASS, "size 0")


# Shapes that are kept


@pytest.mark.parametrize(
    "body",
    [
        "s = Shape(x) y = Reshape(a, s)",
        "s = Shape(a) y = Reshape(a, s)",
        "s = Shape(x) y = Expand(a, s)",
        "y = Expand(a, one)",
        "y = Reshape(a, kept)",
        "y = Tile(a, ones)",
        "s = Shape(x) n = Gather(s, zero) y = Slice(a, zero, n, zero)",
        "b = Flatten<axis = 1>(a) s = Shape(a) y = Reshape(b, s)",
        "b = Unsqueeze(a, one) y = Squeeze(b, one)",
        "b = Unsqueeze(a, one) c = Reshape(b, flat) s = Shape(x) y = Reshape(c, s)",
    ],
)
def test_what_keeps_the_shape_goes(body: str) -> None:
    model = parse(
        f"""g (float[n, m, 3] x) => (float[n, m, 3] z) <int64[1] one = {{1}}, int64[1] zero = {{0}},
        int64[3] kept = {{0, -1, 3}}, int64[3] ones = {{1, 1, 1}}, int64[1] flat = {{-1}}> {{
            a = Exp(x) {body} z = Neg(y)
        }}"""
    )
    feeds = [feed(2, 4, 3), feed(1, 1, 3), feed(3, 0, 3)]
    if "kept" not in body:
        feeds.append(feed(0, 2, 3))
    if "flat" in body:  # the original asks to copy a size that the flat tensor has not
        feeds.pop(2)
    assert op_types(optimize(model, PASS, *feeds)) == ["Exp", "Neg"]


@pytest.mark.parametrize(
    "body",
    [
        "s = Shape(w) b = Reshape(x, s)",  # the same number of elements, another shape
        "b = Slice(x, last, first, zero, back)",
        "b = Slice(x, one, far, one)",
        "b = Tile(x, twos)",
        "b = Transpose<perm = [1, 0, 2]>(x)",
        "s = Shape(w) b = Expand(x, s)",
    ],
)
def test_what_may_change_the_shape_or_the_order_stays(body: str) -> None:
    model = parse(
        f"""g (float[n, m, 3] x, float[m, n, 3] w) => (float[a, b, 3] y) <int64[1] one = {{1}},
        int64[1] zero = {{0}}, int64[1] last = {{-1}}, int64[1] first = {{-2147483648}},
        int64[1] back = {{-1}}, int64[1] far = {{2147483647}}, int64[3] twos = {{1, 1, 2}}> {{
            {body} y = Neg(b)
        }}"""
    )
    untouched(model, "fold-shapes")


def test_a_kept_shape_between_input_and_output_stays() -> None:
    model = parse("g (float[n] x) => (float[n] y) { s = Shape(x) y = Reshape(x, s) }")
    optimized, outcomes = apply(model, PASS)
    assert op_types(optimized) == ["Reshape"]
    assert any("made elsewhere" in each.reason for each in outcomes["fold-shapes"].refusals)
    assert target(optimized) == [0]


def test_unknown_sizes_are_not_taken_for_the_same() -> None:
    """A question mark, or nothing at all, is no name of a size."""
    for size in ("?", ""):
        model = parse(
            """g (float[n, m] x, float[n, m] w) => (float[n, m] y) {
                s = Shape(w) b = Reshape(x, s) y = Neg(b)
            }"""
        )
        for value in (*model.graph.input, *model.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                dim.dim_param = size
        untouched(model, "fold-shapes")


# Known integers


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("r = Shape(x)", [2, 3, 4]),
        ("r = Shape<start = 1>(x)", [3, 4]),
        ("r = Shape<start = -2, end = -1>(x)", [3]),
        ("r = Size(x)", 24),
        ("s = Shape(x) r = Gather(s, last)", 4),
        ("s = Shape(x) r = Slice(s, one, far)", [3, 4]),
        ("s = Shape(x) r = Slice(s, far, least, zeros, minus)", [4, 3, 2]),
        ("s = Shape(x) r = ReduceProd<keepdims = 0>(s)", 24),
        ("s = Shape(x) a, r = Split<axis = 0>(s, parts) q = Neg(a)", [3, 4]),
        ("s = Shape(x) a = Mul(s, minus) r = Div(a, five)", [0, 0, 0]),
        ("s = Shape(x) a = Mul(s, minus) r = Mod(a, five)", [3, 2, 1]),
        ("s = Shape(x) a = Mul(s, minus) r = Mod<fmod = 1>(a, five)", [-2, -3, -4]),
        ("s = Shape(x) r = Max(s, three)", [3, 3, 4]),
        ("s = Shape(x) c = Equal(s, three) r = Where(c, minus, s)", [2, -1, 4]),
        ("s = Shape(x) c = Less(s, three) r = Cast<to = 6>(c)", [1, 0, 0]),
        ("s = Size(x) r = Range(scalar, s, ten)", [3, 13, 23]),
        ("s = Shape(x) a = Cast<to = 6>(s) r = Sub(a, a)", [0, 0, 0]),
    ],
)
def test_integers_that_are_known_become_constants(expression: str, expected: Any) -> None:
    model = parse(
        f"""g (float[2, 3, 4] x) => (float[2, 3, 4] y) <int64 last = {{2}}, int64[1] one = {{1}},
        int64[1] far = {{2147483647}}, int64[1] least = {{-2147483648}}, int64[1] zeros = {{0}},
        int64[1] minus = {{-1}}, int64[2] parts = {{1, 2}}, int64[1] five = {{5}},
        int64[1] three = {{3}}, int64 scalar = {{3}}, int64 ten = {{10}}> {{
            {expression}
            f = Cast<to = 1>(r) t = ReduceSum<keepdims = 0>(f) y = Add(x, t)
        }}"""
    )
    optimized = optimize(model, PASS, feed(2, 3, 4))
    [cast] = [
        node for node in optimized.graph if node.op_type == "Cast" and node.outputs[0].name == "f"
    ]
    array = constant_array(cast.inputs[0])
    if "Split" in expression:  # a node with several outputs is left to constant folding
        assert array is None
    else:
        assert array is not None
        assert array.tolist() == expected
        assert op_types(optimized) == ["Cast", "ReduceSum", "Add"]


@pytest.mark.parametrize(
    "expression",
    [
        "s = Shape(x) r = Gather(s, zero)",
        "r = Size(x)",
        "s = Shape(x) a = Gather(s, zero) c = Equal(a, one) r = Cast<to = 7>(c)",
        "s = Shape(x) a = Gather(s, zero) r = Div(a, two)",
        "s = Shape(x) a = Gather(s, zero) r = Max(a, two)",
        "s = Shape(x) a = Gather(s, zero) r = Sub(a, two)",
        "n = NonZero(x) s = Shape(n) r = Gather(s, one)",
    ],
)
def test_integers_that_differ_from_run_to_run_stay(expression: str) -> None:
    model = parse(
        f"""g (float[n, 4] x) => (float[n, 4] y) <int64 zero = {{0}}, int64 one = {{1}},
        int64 two = {{2}}> {{ {expression} f = Cast<to = 1>(r) y = Add(x, f) }}"""
    )
    untouched(model, "fold-shapes")


def test_a_known_shape_that_is_an_output_of_the_graph_stays() -> None:
    model = parse("g (float[2, 3] x) => (int64[2] y) { y = Shape(x) }")
    untouched(model, PASS, "made by a node")


def test_what_somebody_made_dynamic_by_hand_is_not_taken_for_fixed() -> None:
    """The input has a dynamic batch, but the file still states the old one further on."""
    model = parse(
        """g (float[n, 4] x) => (float[n, 2, 2] y) <float[1, 4] a> {
            a = Neg(x)
            s = Shape(a)
            i = Constant<value_ints = [0]>()
            b = Gather(s, i)
            c = Constant<value_ints = [2, 2]>()
            t = Concat<axis = 0>(b, c)
            y = Reshape(a, t)
        }"""
    )
    optimized = optimize(model, "fold-shapes", feed(1, 4))
    assert target(optimized) == [0, 2, 2]
    for batch in (0, 3):  # where the runtime believes the file and fails
        assert run(to_proto(optimized), feed(batch, 4))[0].shape == (batch, 2, 2)


# Shapes taken from elsewhere


def test_a_shape_put_together_again_is_the_shape() -> None:
    model = parse(
        """g (float[n, m] x, float[1] w) => (float[n, m] y) <int64[1] i0 = {0}, int64[1] i1 = {1}> {
            s = Shape(x) a = Gather(s, i0) b = Gather(s, i1)
            t = Concat<axis = 0>(a, b)
            e = Expand(w, t)
            y = MatMul(e, e)
        }"""
    )
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "n"
    optimized, _ = apply(model, PASS)
    assert op_types(optimized) == ["Shape", "Expand", "MatMul"]


def part_of_shape(opset: int, more: str = "", out: str = "") -> onnx.ModelProto:
    return parse(
        f"""{header(opset)} g (float[n, m, 5] x, float[1] w) => (float[n, m] y{out})
        <int64[1] start = {{0}}, int64[1] end = {{2}}> {{
            s = Shape(x)
            t = Slice(s, start, end)
            y = Expand(w, t)
            {more}
        }}"""
    )


def test_a_part_of_a_shape_is_asked_for_directly() -> None:
    feeds = [feed(*shape, w=np.ones(1, np.float32)) for shape in [(2, 3, 5), (0, 3, 5), (1, 1, 5)]]
    optimized = optimize(part_of_shape(15), PASS, *feeds)
    assert op_types(optimized) == ["Shape", "Expand"]
    untouched(part_of_shape(14), PASS, "needs opset 15")
    more = "u = Mul(t, end) v = Concat<axis = 0>(t, u) z = Neg(v)"
    untouched(part_of_shape(15, more, ", int64[4] z"), PASS, "looks for this pattern")
    untouched(part_of_shape(15, "z = Neg(s)", ", int64[3] z"), PASS, "save no node")


def test_the_shape_is_asked_of_an_earlier_value_where_that_saves_work() -> None:
    text = """g (float[n, 4] x, float[4] w, float[1] v) => (float[n, 4] y) {
        a = Exp(x) b = Add(a, w) s = Shape(b) y = Expand(v, s) MORE
    }"""
    ones = {"w": np.ones(4, np.float32), "v": np.ones(1, np.float32)}
    feeds = [feed(*shape, **ones) for shape in [(2, 4), (0, 4)]]
    optimized = optimize(parse(text.replace("MORE", "")), PASS, *feeds)
    assert op_types(optimized) == ["Shape", "Expand"]
    used = text.replace("MORE", "z = Neg(b)").replace("y)", "y, float[n, 4] z)")
    untouched(parse(used.replace("x, float[4] w", "x, float[4] w")), PASS)
    broadcast = text.replace("MORE", "").replace("float[4] w", "float[k, 4] w")
    untouched(parse(broadcast.replace("float[n, 4] y", "float[o, 4] y")), "fold-shapes")


# Operands made in the shape of their neighbour


@pytest.mark.parametrize(
    ("operator", "value"), [("Mul", "1.0"), ("Add", "0.0"), ("Sub", "2.5"), ("Pow", "2.0")]
)
def test_filled_operands_are_left_to_broadcasting(operator: str, value: str) -> None:
    model = parse(
        f"""g (float[n, m] x) => (float[n, m] y) {{
            s = Shape(x)
            c = ConstantOfShape<value = float[1] {{{value}}}>(s)
            a = {operator}(x, c)
            y = Neg(a)
        }}"""
    )
    feeds = [feed(2, 3), feed(0, 3), feed(1, 1)]
    assert op_types(optimize(model, PASS, *feeds)) == [operator, "Neg"]
    if (operator, value) in (("Mul", "1.0"), ("Add", "0.0")):
        cleaned = optimize(model, f"{PASS},eliminate-no-ops", *feeds)
        assert op_types(cleaned) == ["Neg"]


def test_a_filled_condition_and_the_type_of_the_number() -> None:
    model = parse(
        """g (double[n, m] z, bool[m] b) => (double[n, m] y) {
            s = Shape(z)
            c = ConstantOfShape<value = double[1] {3.0}>(s)
            y = Where(b, z, c)
        }"""
    )
    given = {"z": np.ones((2, 3)), "b": np.array([True, False, True])}
    assert op_types(optimize(model, PASS, given)) == ["Where"]


def test_an_expanded_operand_is_left_to_broadcasting() -> None:
    model = parse(
        """g (float[n, m, 3] x, float[m, 1] w) => (float[n, m, 3] y) {
            s = Shape(x) e = Expand(w, s) y = Add(x, e)
        }"""
    )
    feeds = [feed(*shape, w=np.ones((shape[1], 1), np.float32)) for shape in [(2, 4, 3), (0, 4, 3)]]
    assert op_types(optimize(model, PASS, *feeds)) == ["Add"]


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        # The filled tensor makes the result larger than the other operand.
        ("float[1, m] x, float[n, m] w", "s = Shape(w) c = ConstantOfShape(s) b = Add(x, c)"),
        ("float[n, m] x, float[n, m, m] w", "s = Shape(w) c = ConstantOfShape(s) b = Add(x, c)"),
        ("float[n, m] x, float[k, m] w", "s = Shape(w) c = ConstantOfShape(s) b = Add(x, c)"),
        ("float[1, m] x, float[n, m] w", "s = Shape(w) b0 = Expand(x, s) b = Add(x, b0)"),
        # No broadcasting.
        ("float[n, m] x, float[m, m] w", "s = Shape(w) c = ConstantOfShape(s) b = MatMul(x, c)"),
        # The filled tensor is there anyhow.
        (
            "float[n, m] x, float[n, m] w",
            "s = Shape(x) c = ConstantOfShape(s) d = Add(x, c) b = Concat<axis = 0>(c, d)",
        ),
    ],
)
def test_operands_that_matter_stay(inputs: str, body: str) -> None:
    model = parse(f"g ({inputs}) => (float[p, q] y) {{ {body} y = Neg(b) }}")
    if "m, m]" in inputs and "Add" in body:
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_param = "r"
    untouched(model, "fold-shapes")


@pytest.mark.parametrize(
    ("shape", "elements", "expected"),
    [("n, 1, s", "d0 4 d2", [1, 4, 1]), ("1, s", "3 d1", [3, 1]), ("s", "2 3 d0", [2, 3, 1])],
)
def test_expand_asks_only_for_what_the_input_has_not(
    shape: str, elements: str, expected: list[int]
) -> None:
    model = reshape(shape, elements)
    model.graph.node[-1].op_type = "Expand"
    sizes = [2 if size.strip().isalpha() else 1 for size in shape.split(",")]
    empty = [0 if size.strip() == "s" else 1 for size in shape.split(",")]
    optimized = optimize(model, PASS, feed(*sizes), feed(*empty), feed(*([1] * len(sizes))))
    assert target(optimized, "Expand") == expected


@pytest.mark.parametrize(
    ("shape", "elements"), [("n, 1", "d0 d0"), ("n", "d0 d0"), ("n, 1", "1 d0")]
)
def test_expand_to_another_dynamic_size_stays(shape: str, elements: str) -> None:
    model = reshape(shape, elements)
    model.graph.node[-1].op_type = "Expand"
    optimized, outcomes = apply(model, "fold-shapes")
    assert target(optimized, "Expand") is None
    [refusal] = [each for each in outcomes["fold-shapes"].refusals if each.rule == "fix-target"]
    assert "only known when the model runs" in refusal.reason


# Where the nodes stand


def test_shapes_in_a_branch_and_of_captured_values() -> None:
    model = parse(
        """g (float[n, 6] x, bool c) => (float[n, 3, 2] y) <int64[1] i = {0}, int64[2] k = {3, 2}> {
            a = Exp(x)
            y = If (c) <
                then_branch = t () => (float[n, 3, 2] p) {
                    s = Shape(a) b = Gather(s, i) u = Concat<axis = 0>(b, k) p = Reshape(a, u)
                },
                else_branch = e () => (float[n, 3, 2] q) {
                    v = Shape(x) d = Gather(v, i) w = Concat<axis = 0>(d, k) q = Reshape(x, w)
                }
            >
        }"""
    )
    feeds = [feed(size, 6, c=choice) for size in (0, 1, 3) for choice in (True, False)]
    assert op_types(optimize(model, PASS, *feeds)) == ["Exp", "If", "Reshape", "Reshape"]


def test_shapes_in_a_function() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
        g (float[n, 6] x) => (float[n, 6] y) { y = own.f(x) }
        <domain: "own", opset_import: ["" : 18]>
        f (a) => (b) { c = Exp(a) s = Shape(c) d = Reshape(a, s) b = Neg(d) }"""
    )
    untouched(model, PASS)  # the rank of a is not known in the function


def test_old_slices_with_attributes() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 9]>
        g (float[n, 4, 6] x) => (float[n, a] y) <int64[1] rest = {-1}> {
            s = Shape(x)
            b = Slice<axes = [0], starts = [0], ends = [1]>(s)
            t = Concat<axis = 0>(b, rest)
            y = Reshape(x, t)
        }"""
    )
    optimized = optimize(model, PASS, feed(2, 4, 6), feed(1, 4, 6))
    assert target(optimized) == [0, 24]


# Any shape, any way of asking


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_computed_reshape_does_the_same(data: st.DataObject) -> None:
    """Factors of the input's shape, grouped anew, with dynamic and fixed sizes mixed."""
    rank = data.draw(st.integers(1, 4))
    dynamic = data.draw(st.lists(st.booleans(), min_size=rank, max_size=rank))
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    names = [f"n{axis}" if free else str(sizes[axis]) for axis, free in enumerate(dynamic)]
    order = data.draw(st.permutations(range(rank)))
    cuts = data.draw(st.lists(st.booleans(), min_size=rank - 1, max_size=rank - 1))
    groups = [[order[0]]]
    for axis, cut in zip(order[1:], cuts, strict=True):
        if cut:
            groups.append([axis])
        else:
            groups[-1].append(axis)
    elements = ["*".join(f"d{axis}" for axis in group) for group in groups]
    if data.draw(st.booleans()):
        elements[data.draw(st.integers(0, len(elements) - 1))] = "-1"
    model = reshape(", ".join(names), " ".join(elements))
    feeds = [feed(*sizes)]
    if "-1" not in elements and any(dynamic):
        empty = data.draw(st.sampled_from([axis for axis, free in enumerate(dynamic) if free]))
        if all(len(group) == 1 and group[0] == at for at, group in enumerate(groups)):
            feeds.append(feed(*(0 if axis == empty else sizes[axis] for axis in range(rank))))
    optimize(model, PASS, *feeds)
