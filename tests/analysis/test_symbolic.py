"""What is derived about a model must hold in ONNX Runtime, for each size of each dimension."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from onnxopt.passes.infer_shapes import InferShapes

from onnxopt.analysis.expressions import Atom, Expression, number, symbol
from onnxopt.analysis.symbolic import SymbolicFacts
from onnxopt.analysis.values import dims
from onnxopt.model import from_proto
from tests.differential import parse

F = number(4)
N, M = (symbol(Atom("dim", name)) for name in "nm")


def value(model: ir.Model, name: str) -> ir.Value:
    """The output of some node of the main graph."""
    [found] = [each for node in model.graph for each in node.outputs if each.name == name]
    return found


def run_unoptimized(model: onnx.ModelProto, feed: Mapping[str, Any], name: str) -> Any:
    """One value of a model, run without optimizations that might take it away."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(copy.SerializeToString(), options).run([name], dict(feed))[0]


def ones(n: int, m: int) -> np.ndarray[Any, Any]:
    return np.ones((n, m, 4), np.float32)


def model_of(body: str, kind: str = "float") -> onnx.ModelProto:
    """A model with an input of shape (n, m, 4), some constants, and an output y of any shape."""
    model = parse(
        f"""g (float[n, m, 4] x) => ({kind}[o] y) <int64[1] zero = {{0}}, int64[1] one = {{1}},
        int64[1] two = {{2}}, int64[1] three = {{3}}, int64[1] last = {{-1}},
        int64[1] axis2 = {{2}}, int64[1] far = {{9223372036854775807}},
        int64 i0 = {{0}}, int64 i1 = {{1}}, int64 i2 = {{2}},
        float fill = {{0}}, int64[2] ends = {{2, -1}}, int64[6] pads = {{0, 1, 0, 2, 0, 3}},
        float[3] scales = {{1, 2, 1}}, int64[3] order = {{0, 2, 1}}, int64[3] repeats = {{0, 2, 1}},
        int64[3] flat = {{0, -1, 2}}, int64[2] parts = {{1, 3}},
        int64[2] one_two = {{1, 2}}, int64[1] least = {{-9223372036854775808}},
        float[2] off_on = {{0, 1}},
        bool yes = {{1}}, int64[3] sizes = {{3, 1, 4}}>
        {{ {body} }}""",
        {"w": np.ones((4, 5), np.float32), "none": np.ones(0, np.float32)},
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def assert_holds(
    body: str, known: Sequence[Expression], actual: Callable[[int, int], Sequence[int]]
) -> int:
    """Hold expressions against the numbers of runs with n and m of 0, 1 and 3."""
    held = 0
    for n, m in itertools.product((3, 1, 0), repeat=2):
        try:
            numbers = actual(n, m)
        except Exception:  # not everything takes empty tensors; there is nothing to hold then
            assert 0 in (n, m), body
            continue
        values = {Atom("dim", "n"): n, Atom("dim", "m"): m}
        assert len(numbers) == len(known)
        for expression, size in zip(known, numbers, strict=True):
            if expression.atoms <= set(values):
                assert expression.evaluate(values) == size, (body, n, m)
                held += 1
            else:
                bound = expression.lower_bound()
                assert bound is None or size >= bound, (body, n, m)
    return held


SHAPES = [
    ("y = Exp(x)", [N, M, number(4)]),
    ("y = Softmax(x)", [N, M, number(4)]),
    ("y = Transpose<perm = [2, 0, 1]>(x)", [number(4), N, M]),
    ("y = Transpose(x)", [number(4), M, N]),
    ("y = Flatten(x)", [N, M * number(4)]),
    ("y = Flatten<axis = -1>(x)", [N * M, number(4)]),
    ("y = Unsqueeze(x, ends)", [N, M, number(1), number(4), number(1)]),
    ("a = Unsqueeze(x, last) y = Squeeze(a, last)", [N, M, number(4)]),
    ("y = Concat<axis = 1>(x, x)", [N, M * number(2), number(4)]),
    ("y = Concat<axis = -2>(x, x, x)", [N, M * number(3), number(4)]),
    ("y, b = Split<axis = 2>(x, parts)", [N, M, number(1)]),
    ("b, y = Split<axis = 2, num_outputs = 2>(x)", [N, M, number(2)]),
    ("y = Gather<axis = 2>(x, i1)", [N, M]),
    ("y = Gather<axis = 2>(x, order)", [N, M, number(3)]),
    ("y = Slice(x, zero, far, one)", [N, M, number(4)]),
    ("y = Slice(x, one, last, axis2)", [N, M, number(2)]),
    ("y = Slice(x, last, zero, axis2, last)", [N, M, number(3)]),
    ("s = Shape(x) e = Gather(s, one) y = Slice(x, zero, e, one)", [N, M, number(4)]),
    ("y = Tile(x, repeats)", [number(0), M * number(2), number(4)]),
    ("s = Shape(x) y = Expand(fill, s)", [N, M, number(4)]),
    ("s = Shape(x) y = ConstantOfShape(s)", [N, M, number(4)]),
    ("a = Cast<to = 1>(x) y = Add(a, x)", [N, M, number(4)]),
    ("y = Mul(x, fill)", [N, M, number(4)]),
    ("y = MatMul(x, w)", [N, M, number(5)]),
    ("a = Flatten<axis = 2>(x) y = Gemm(a, w)", [N * M, number(5)]),
    ("a = Flatten<axis = 2>(x) b = Transpose(a) y = Gemm<transA = 1>(b, w)", [N * M, number(5)]),
    ("y = ReduceSum(x, last)", [N, M, number(1)]),
    ("y = ReduceSum<keepdims = 0>(x, one)", [N, number(4)]),
    ("y = ReduceSum<keepdims = 0>(x)", []),
    ("y = ReduceSum<noop_with_empty_axes = 1>(x)", [N, M, number(4)]),
    ("y = ArgMax<axis = 2, keepdims = 0>(x)", [N, M]),
    ("y = Pad(x, pads)", [N + number(2), M + number(1), number(7)]),
    ("y = Resize(x, none, scales)", [N, None, number(4)]),
    ("y = Shape(x)", [number(3)]),
    ("y = Size(x)", []),
    ("s = Size(x) y = Range(i0, s, i1)", [N * M * number(4)]),
    ("s = Size(x) y = Range(i1, s, i1)", [None]),
    ("y = Reshape(x, flat)", [N, M * number(2), number(2)]),
    ("s = Shape(x) y = Reshape(x, s)", [N, M, number(4)]),
    (
        "s = Shape(x) a = Gather(s, zero) t = Concat<axis = 0>(a, last) y = Reshape(x, t)",
        [N, M * F],
    ),
    ("s = Shape(x) a = Gather(s, one) t = Concat<axis = 0>(a, last) y = Reshape(x, t)", [None] * 2),
    ("a = Cast<to = 7>(x) y = OneHot<axis = 0>(a, i2, off_on)", [number(2), N, M, number(4)]),
    ("y = Slice(x, zero, one, one)", [N, None, number(4)]),
]


@pytest.mark.parametrize(("body", "expected"), SHAPES)
def test_shapes(body: str, expected: list[Expression | None]) -> None:
    model = model_of(body)
    shape = SymbolicFacts().shape(value(from_proto(model), "y"))
    assert shape is not None
    assert [each if each.atoms <= {*N.atoms, *M.atoms} else None for each in shape] == expected

    def actual(n: int, m: int) -> tuple[int, ...]:
        sizes: tuple[int, ...] = run_unoptimized(model, {"x": ones(n, m)}, "y").shape
        return sizes

    assert_holds(body, shape, actual)


@pytest.mark.parametrize(
    "body",
    [
        "a = NonZero(x) y = Transpose(a)",
        "a = Cast<to = 7>(x) b = Flatten<axis = 0>(a) c = Squeeze(b, zero) y = Reshape(x, c)",
        "y = Squeeze(x)",
        "y = Slice(x, last, far, axis2, last)",
    ],
)
def test_what_depends_on_data_is_not_known(body: str) -> None:
    shape = SymbolicFacts().shape(value(from_proto(model_of(body)), "y"))
    assert shape is None or all(each.constant is None for each in shape)


INTEGERS = [
    ("y = Shape(x)", [N, M, number(4)]),
    ("y = Shape<start = -2>(x)", [M, number(4)]),
    ("y = Size(x)", [N * M * number(4)]),
    ("s = Shape(x) y = Gather(s, i1)", [M]),
    ("s = Shape(x) y = Gather(s, ends)", [number(4), number(4)]),
    ("s = Shape(x) y = Slice(s, last, least, zero, last)", [number(4), M, N]),
    ("s = Shape(x) y = Slice(s, zero, two)", [N, M]),
    ("s = Shape(x) a, y = Split<axis = 0>(s, one_two)", [M, number(4)]),
    ("s = Shape(x) a = Gather(s, i0) b = Unsqueeze(a, zero) y = Concat<axis = 0>(b, s)", None),
    ("s = Shape(x) a = Gather(s, one) y = Squeeze(a)", [M]),
    ("s = Shape(x) a = Gather(s, one) b = Squeeze(a, zero) y = Mul(b, i2)", [M * number(2)]),
    ("s = Shape(x) y = Mul(s, s)", [N * N, M * M, number(16)]),
    ("s = Shape(x) y = Sub(s, two)", [N - number(2), M - number(2), number(2)]),
    ("s = Shape(x) a = Mul(s, two) y = Div(a, two)", [N, M, number(4)]),
    ("s = Shape(x) a = Mul(s, three) y = Mod(a, three)", [number(0), number(0), number(0)]),
    ("s = Shape(x) y = Neg(s)", [-N, -M, number(-4)]),
    ("s = Shape(x) y = Abs(s)", [N, M, number(4)]),
    ("s = Shape(x) y = Max(s, zero)", [N, M, number(4)]),
    ("s = Shape(x) y = Min(s, last)", [number(-1)] * 3),
    ("s = Shape(x) y = ReduceProd<keepdims = 0>(s)", [N * M * number(4)]),
    ("s = Shape(x) y = ReduceSum(s, zero)", [N + M + number(4)]),
    ("s = Shape(x) y = ReduceMax(s, zero)", None),
    ("s = Shape(x) y = Cast<to = 6>(s)", [N, M, number(4)]),
    ("s = Shape(x) c = Equal(s, last) y = Cast<to = 7>(c)", [number(0)] * 3),
    ("s = Shape(x) c = Equal(s, s) y = Where(c, two, s)", [number(2)] * 3),
    ("s = Shape(x) c = Equal(s, last) y = Where(c, two, s)", [N, M, number(4)]),
    ("s = Shape(x) c = Less(s, zero) d = Not(c) y = Cast<to = 7>(d)", [number(1)] * 3),
    ("s = Shape(x) c = GreaterOrEqual(s, zero) y = Cast<to = 7>(c)", [number(1)] * 3),
    ("s = Shape(x) c = LessOrEqual(s, s) d = Xor(c, yes) y = Cast<to = 7>(d)", [number(0)] * 3),
    ("s = Shape(x) c = Greater(last, s) d = Or(c, c) y = Cast<to = 7>(d)", [number(0)] * 3),
    ("s = Shape(x) y = Reshape(s, last)", [N, M, number(4)]),
    ("s = Shape(x) a = Gather(s, i1) y = Reshape(a, one)", [M]),
    ("s = Shape(x) a = Gather(s, i1) y = Expand(a, two)", [M, M]),
    ("y = ConstantOfShape<value = int64[1] {-7}>(three)", [number(-7)] * 3),
    ("y = Range(i0, i2, i1)", [number(0), number(1)]),
    ("s = Shape(x) y = Identity(s)", [N, M, number(4)]),
]


@pytest.mark.parametrize(("body", "expected"), INTEGERS)
def test_integers(body: str, expected: list[Expression] | None) -> None:
    model = model_of(body, "int64")
    known = SymbolicFacts().integers(value(from_proto(model), "y"))
    assert known is not None
    if expected is not None:
        assert list(known.elements) == expected

    def actual(n: int, m: int) -> list[int]:
        result = run_unoptimized(model, {"x": ones(n, m)}, "y")
        assert (result.ndim == 0) == known.is_scalar
        return [int(each) for each in result.reshape(-1)]

    assert assert_holds(body, known.elements, actual) or expected is None


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Equal", "Less", "Where"]
        ),
        st.integers(0, 30),
        st.integers(0, 30),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_any_arithmetic_on_sizes(chosen: list[tuple[str, int, int]]) -> None:
    values, lines = ["s", "sizes", "two"], ["s = Shape(x)"]
    for operator, left, right in chosen:
        one, other = values[left % len(values)], values[right % len(values)]
        name = f"v{len(lines)}"
        match operator:
            case "Equal" | "Less":
                lines.append(f"{name}b = {operator}({one}, {other}) {name} = Cast<to = 7>({name}b)")
            case "Where":
                lines.append(f"{name}b = Equal({one}, {other}) {name} = Where({name}b, {one}, s)")
            case "Div" | "Mod":  # a divisor that is never 0, and neither is everything else
                lines.append(f"{name}m = Mul({other}, {other}) {name}d = Add({name}m, two)")
                lines.append(f"{name} = {operator}({one}, {name}d)")
            case _:
                lines.append(f"{name} = {operator}({one}, {other})")
        values.append(name)
    body = " ".join([*lines, f"y = Identity({values[-1]})"])
    model = model_of(body, "int64")
    known = SymbolicFacts().integers(value(from_proto(model), "y"))
    assert known is not None

    def actual(n: int, m: int) -> list[int]:
        result = run_unoptimized(model, {"x": ones(n, m)}, "y")
        return [int(each) for each in result.reshape(-1)]

    assert_holds(body, known.elements, actual)


@pytest.mark.parametrize(
    "body",
    [
        "s = Shape(x) y = Gather(s, nine)",
        "s = Shape(x) y = Slice(s, last, far, zero, last)",
        "a = Cast<to = 7>(fill) y = Div(three, a)",
        "s = Shape(x) a = Cast<to = 3>(s) y = Cast<to = 7>(a)",
        "s = Shape(x) y = Unsqueeze(s, zero)",
        "y = ConstantOfShape<value = int64[1] {1}>(big)",
        "y = Range(i0, huge, i1)",
    ],
)
def test_contents_that_are_not_followed(body: str) -> None:
    more = """nine = Constant<value = int64 {9}>() big = Constant<value_ints = [65]>()
        huge = Constant<value = int64 {100000}>() """
    known = SymbolicFacts().integers(value(from_proto(model_of(more + body, "int64")), "y"))
    assert known is None or known.constants is None


def test_a_number_that_does_not_fit_its_type_is_not_known() -> None:
    body = """a = Constant<value = int32[1] {2000000000}>() b = Add(a, a)
        c = Constant<value_ints = [5000000000]>() d = Cast<to = 6>(c) y = Concat<axis = 0>(b, d)"""
    known = SymbolicFacts().integers(value(from_proto(model_of(body, "int64")), "y"))
    assert known is None or known.constants is None


def test_an_initializer_that_can_be_overridden_is_not_known() -> None:
    model = from_proto(
        parse("g (int64[2] a) => (int64[2] y) <int64[2] a = {1, 2}> { y = Identity(a) }")
    )
    known = SymbolicFacts().integers(value(model, "y"))
    assert known is not None
    assert known.constants is None
    assert known.elements[0] != known.elements[1]


def test_the_same_operation_on_the_same_sizes_is_the_same_number() -> None:
    body = """s = Shape(x) a = Gather(s, i0) b = Gather(s, i1)
        c = Sub(a, i1) d = Div(c, i2) e = Div(c, i2) f = Div(b, i2)
        g = Min(a, b) h = Min(b, a)
        dv = Unsqueeze(d, zero) ev = Unsqueeze(e, zero) fv = Unsqueeze(f, zero)
        gv = Unsqueeze(g, zero) hv = Unsqueeze(h, zero)
        y = Concat<axis = 0>(dv, ev, fv, gv, hv)"""
    known = SymbolicFacts().integers(value(from_proto(model_of(body, "int64")), "y"))
    assert known is not None
    one, two, three, four, five = known.elements
    assert one == two
    assert four == five
    assert len({one, three, four}) == 3


def test_names_of_sizes_cannot_be_mistaken_for_arithmetic() -> None:
    """A dimension may be called anything, such as the text of another expression."""
    text = """g (float[n] a, float[n] b) => (int64[k] y) <int64[1] two = {2}> {
        s = Shape(a) t = Shape(b) u = Div(s, two) v = Div(t, two) y = Concat<axis = 0>(u, v)
    }"""
    model = parse(text)
    quoted = "n'*dim:'n"
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = quoted
    square = parse(text.replace("t = Shape(b)", "t0 = Shape(b) t = Mul(t0, t0)"))
    square.graph.input[0].type.tensor_type.shape.dim[0].dim_param = quoted
    for each in (model, square):
        known = SymbolicFacts().integers(value(from_proto(each), "y"))
        assert known is not None
        assert known.elements[0] != known.elements[1]


def test_sizes_without_a_name_are_told_apart() -> None:
    model = from_proto(parse("g (float[a, b] x) => (float[a, b] y) { y = Neg(x) }"))
    model.graph.inputs[0].shape = ir.Shape([None, "?"])
    facts = SymbolicFacts()
    first, second = facts.shape(value(model, "y")) or ()
    assert first != second
    assert facts.shape(model.graph.inputs[0]) == (first, second)


def test_a_long_chain_takes_no_recursion() -> None:
    """Ten times as long as the interpreter's stack is deep; expressions stay small."""
    count = 10_000
    lines = [f"v{i + 1} = Div(v{i}, two)" for i in range(count)]
    lines += [f"u{i + 1} = Add(u{i}, v{i})" for i in range(count)]
    body = f"""v0 = Shape(x) u0 = Shape(x) {" ".join(lines)} y = Reshape(x, u{count})"""
    model = from_proto(model_of(body))
    facts = SymbolicFacts()
    known = facts.integers(value(model, f"u{count}"))
    assert known is not None
    assert len(known.elements) == 3
    assert max(len(str(each)) for each in known.elements) < 5000
    assert facts.shape(value(model, "y")) is not None


def test_shapes_from_inference_are_taken_as_they_are() -> None:
    text = "g (float[n, m] x) => (float[a, b] y) { u = Neg(x) v = Abs(u) y = Exp(v) }"
    model = from_proto(parse(text))
    value(model, "v").shape = ir.Shape(["n", "m"])
    value(model, "u").shape = ir.Shape([1, 2])  # is never looked at
    facts = SymbolicFacts(model)
    assert facts.shape(value(model, "v")) == (N, M)
    assert facts.shape(value(model, "y")) == (N, M)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[n, m] x) => (float[a, b] y) <float[3, 4] u> { u = Neg(x) v = Abs(u) y = Exp(v) }",
        "g (float[n, m] x) => (float[3, 4] u, float[a, b] y) { u = Neg(x) v = Abs(u) y = Exp(v) }",
    ],
)
@pytest.mark.parametrize("inferred", [False, True])
def test_outdated_shapes_are_not_believed(text: str, inferred: bool) -> None:
    """Somebody made the input dynamic by hand and left the other shapes as they were."""
    model = from_proto(parse(text))
    if inferred:
        assert InferShapes()(model).modified
        assert dims(value(model, "v")) == ("n", "m")
    assert SymbolicFacts(model).shape(value(model, "v")) == (N, M)
