"""eliminate-no-ops: neutral operands, single operands, functions that undo or repeat."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import onnx
import pytest

from tests.differential import Feed, apply, op_types, optimize, parse, untouched

PASS = "infer-shapes,eliminate-no-ops"


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


def feed(*shape: int, dtype: str = "float32") -> Feed:
    return {"x": np.random.default_rng(0).normal(0, 3, shape).astype(dtype)}


@pytest.mark.parametrize(
    ("line", "constant"),
    [
        ("b = Add(a, c)", "float c = {0}"),
        ("b = Add(c, a)", "float[1] c = {0}"),
        ("b = Sub(a, c)", "float[1, 1] c = {0}"),
        ("b = Mul(a, c)", "float[3] c = {1, 1, 1}"),
        ("b = Mul(c, a)", "float[1, 3] c = {1, 1, 1}"),
        ("b = Div(a, c)", "float c = {1}"),
        ("b = Pow(a, c)", "float c = {1}"),
        ("b = Pow(a, c)", "int64 c = {1}"),
        ("b = PRelu(a, c)", "float[1] c = {1}"),
        ("c = Constant<value_float = 1.0>() b = Mul(a, c)", ""),
    ],
)
def test_neutral_operand_goes(line: str, constant: str) -> None:
    optimized = optimize(between(line, constants=constant), PASS, feed(4, 3), feed(0, 3))
    assert [op for op in op_types(optimized) if op != "Constant"] == ["Abs", "Neg"]


@pytest.mark.parametrize(
    ("line", "constant"),
    [
        ("b = Add(a, c)", "float c = {1}"),
        ("b = Sub(c, a)", "float c = {0}"),
        ("b = Mul(a, c)", "float c = {0}"),
        ("b = Mul(a, c)", "float[3] c = {1, 1, 2}"),
        ("b = Div(c, a)", "float c = {1}"),
        ("b = Pow(c, a)", "float c = {1}"),
        ("b = Sub(a, a)", ""),
        ("b = Div(a, a)", ""),
    ],
)
def test_other_arithmetic_stays(line: str, constant: str) -> None:
    untouched(between(line, constants=constant), PASS)


@pytest.mark.parametrize(
    ("x", "y", "constant"),
    [
        ("float[n]", "float[2, n]", "float[2, 1] c = {0, 0}"),
        ("float[n]", "float[m]", "float[3] c = {0, 0, 0}"),
        ("float[1, 3]", "float[2, 3]", "float[2, 3] c = {0, 0, 0, 0, 0, 0}"),
        ("float", "float[1]", "float[1] c = {0}"),
    ],
)
def test_neutral_operand_that_broadcasts_stays(x: str, y: str, constant: str) -> None:
    untouched(between("b = Add(a, c)", x, y, constant), PASS, "broadcast")


UNKNOWN_RANK = (
    "g (float[n] x, int64[k] s) => (float[l] y) <{}> {{ a = Reshape(x, s) {} y = Neg(b) }}"
)


def test_neutral_operand_of_unknown_rank_stays() -> None:
    text = UNKNOWN_RANK.format("float[1] c = {1}", "b = Mul(a, c)")
    untouched(parse(text), PASS, "broadcast")


def test_scalar_is_neutral_at_any_rank() -> None:
    text = UNKNOWN_RANK.format("float c = {1}", "b = Mul(a, c)")
    values = {**feed(4), "s": np.array([4])}
    assert op_types(optimize(parse(text), PASS, values)) == ["Reshape", "Neg"]


def test_operand_that_can_be_overridden_stays() -> None:
    model = parse("g (float[n] x, float c) => (float[n] y) <float c = {0}> { y = Add(x, c) }")
    untouched(model, PASS)


def test_operand_that_is_a_parameter_of_the_function_stays() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "f" : 1]>
        g (float[n] x) => (float[n] y) { y = f.plus<c = 0.0>(x) }
        <domain: "f", opset_import: ["" : 18]> plus<c>(x) => (y) {
            z = Constant<value_float: float = @c>() y = Add(x, z)
        }"""
    )
    optimized, _ = apply(model, PASS)
    (function,) = optimized.functions.values()
    assert [node.op_type for node in function] == ["Constant", "Add"]


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int32", "int64", "uint8", "bfloat16"]
)
def test_every_type_of_number(dtype: str) -> None:
    name = {"float32": "float", "float64": "double"}.get(dtype, dtype)
    numpy_type = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    model = parse(
        f"""g ({name}[n] x) => ({name}[n] y) {{
            a = Add(x, x) b = Mul(a, c) d = Div(b, c) y = Sub(d, x) }}""",
        {"c": np.ones((), numpy_type)},
    )
    if dtype == "bfloat16":  # no kernels in the runtime
        assert op_types(apply(model, PASS)[0]) == ["Add", "Sub"]
    else:
        values = {"x": np.arange(4).astype(numpy_type)}
        assert op_types(optimize(model, PASS, values)) == ["Add", "Sub"]


def test_infinities_nan_and_zeros_stay_what_they_are() -> None:
    special = np.array([np.inf, -np.inf, np.nan, 0, -0.0, 1e-45], np.float32)
    model = parse(
        """g (float[n] x) => (float[n] y) <float o = {1}, float z = {0}> {
            a = Neg(x) b = Mul(a, o) c = Add(b, z) d = Div(c, o) e = Pow(d, o) y = Neg(e) }"""
    )
    optimized = optimize(model, PASS, {"x": special})
    assert op_types(optimized) == ["Neg", "Neg"]


@pytest.mark.parametrize(
    ("line", "constant"),
    [
        ("b = And(a, c)", "bool c = {1}"),
        ("b = And(c, a)", "bool[3] c = {1, 1, 1}"),
        ("b = Or(a, c)", "bool c = {0}"),
        ("b = Xor(c, a)", "bool c = {0}"),
        ("b = And(a, a)", ""),
        ("b = Or(a, a)", ""),
    ],
)
def test_neutral_truth_goes(line: str, constant: str) -> None:
    text = f"g (bool[n, 3] x) => (int64[n, 3] y) <{constant}> {{ a = Not(x) {line} {{}} }}"
    model = parse(text.replace("{}", "y = Cast<to = 7>(b)"))
    values = np.array([[True, False, True]])
    assert op_types(optimize(model, PASS, {"x": values})) == ["Not", "Cast"]


@pytest.mark.parametrize(
    ("line", "constant"),
    [("b = And(a, c)", "bool c = {0}"), ("b = Or(a, c)", "bool c = {1}"), ("b = Xor(a, a)", "")],
)
def test_other_logic_stays(line: str, constant: str) -> None:
    text = f"g (bool[n] x) => (int64[n] y) <{constant}> {{ a = Not(x) {line} y = Cast<to = 7>(b) }}"
    untouched(parse(text), PASS)


@pytest.mark.parametrize("op", ['BitShift<direction = "LEFT">', "BitwiseOr", "BitwiseXor"])
def test_neutral_bits_go(op: str) -> None:
    model = parse(
        f"g (uint8[n] x) => (uint8[n] y) <uint8 c = {{0}}> "
        f"{{ a = BitwiseNot(x) b = {op}(a, c) y = BitwiseAnd(b, x) }}"
    )
    optimized = optimize(model, PASS, {"x": np.arange(5, dtype=np.uint8)})
    assert op_types(optimized) == ["BitwiseNot", "BitwiseAnd"]


def test_ones_of_a_dynamic_shape_go() -> None:
    model = between(
        "s = Shape(a) c = ConstantOfShape<value = float[1] {1.0}>(s) b = Mul(a, c)", "float[n, m]"
    )
    assert op_types(optimize(model, PASS, feed(2, 5))) == ["Abs", "Neg"]


def test_ones_of_another_dynamic_shape_stay() -> None:
    model = parse(
        """g (float[n, m] x, int64[2] s) => (float[k, l] y) {
            c = ConstantOfShape<value = float[1] {1.0}>(s) y = Mul(x, c) }"""
    )
    untouched(model, PASS, "broadcast")


def test_zeros_expanded_to_the_shape_go() -> None:
    text = UNKNOWN_RANK.format("float z = {0}", "t = Shape(a) c = Expand(z, t) b = Add(a, c)")
    values = {**feed(4), "s": np.array([4])}
    assert op_types(optimize(parse(text), PASS, values)) == ["Reshape", "Neg"]


@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min", "Concat<axis = 0>"])
def test_single_operand(op: str) -> None:
    assert op_types(optimize(between(f"b = {op}(a)"), PASS, feed(2, 3))) == ["Abs", "Neg"]


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_equal_operands(op: str) -> None:
    model = between(f"b = {op}(a, a, a)")
    assert op_types(optimize(model, PASS, feed(2, 3))) == ["Abs", "Neg"]


def test_operands_that_are_not_all_equal_stay() -> None:
    untouched(between("b = Max(a, a, x)"), PASS)
    untouched(between("b = Sum(a, a)"), PASS)


@pytest.mark.parametrize(("truth", "kept"), [(1, "Exp"), (0, "Sqrt")])
def test_constant_condition(truth: int, kept: str) -> None:
    model = parse(
        f"""g (float[n, 3] x) => (float[n, 3] y) <bool[1, 3] c = {{{truth}, {truth}, {truth}}}> {{
            a = Abs(x) t = Exp(a) f = Sqrt(a) b = Where(c, t, f) y = Neg(b) }}"""
    )
    assert op_types(optimize(model, PASS, feed(2, 3))) == ["Abs", kept, "Neg"]


@pytest.mark.parametrize(
    ("other", "condition", "y"),
    [
        ("float[2, 3] o", "bool c = {1}", "float[2, 3] y"),
        ("float[3] o", "bool[2, 1] c = {1, 1}", "float[2, 3] y"),
    ],
)
def test_constant_condition_that_broadcasts_stays(other: str, condition: str, y: str) -> None:
    model = parse(f"g (float[3] x, {other}) => ({y}) <{condition}> {{ y = Where(c, x, o) }}")
    untouched(model, PASS, "broadcast")


def test_mixed_condition_stays() -> None:
    model = between("b = Where(c, a, x)", constants="bool[3] c = {1, 0, 1}")
    untouched(model, PASS)


def test_where_between_a_value_and_itself() -> None:
    model = parse(
        "g (float[2, 3] x, bool[2, 1] c) => (float[2, 3] y) "
        "{ a = Abs(x) b = Where(c, a, a) y = Neg(b) }"
    )
    values = {**feed(2, 3), "c": np.array([[True], [False]])}
    assert op_types(optimize(model, PASS, values)) == ["Abs", "Neg"]
    wide = parse(
        "g (float[3] x, bool[2, 1] c) => (float[2, 3] y) { a = Abs(x) y = Where(c, a, a) }"
    )
    untouched(wide, PASS, "broadcast")


def test_involutions_cancel() -> None:
    model = between("c = Neg(a) d = Neg(c) e = Neg(d) b = Abs(e)")
    assert op_types(optimize(model, PASS, feed(2, 3))) == ["Abs", "Neg", "Abs", "Neg"]
    logic = parse(
        "g (bool[n] x, bool[n] z) => (bool[n] y) { a = And(x, z) b = Not(a) c = Not(b) "
        "y = Or(c, z) }"
    )
    values = {"x": np.array([True, False]), "z": np.array([False, False])}
    assert op_types(optimize(logic, PASS, values)) == ["And", "Or"]


def test_reciprocal_twice_is_not_exact_and_stays() -> None:
    untouched(between("c = Reciprocal(a) b = Reciprocal(c)"), PASS)


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        *[(op, op) for op in ("Relu", "Abs", "Sign", "Floor", "Ceil", "Round")],
        *[(inner, "Relu") for inner in ("Abs", "Exp", "Sqrt", "Sigmoid", "HardSigmoid")],
        *[(inner, "Abs") for inner in ("Relu", "Softplus", "Softmax")],
        *[("Round", "Floor"), ("Floor", "Ceil"), ("Ceil", "Round"), ("Sign", "Floor")],
    ],
)
def test_function_that_leaves_the_inner_one_alone(inner: str, outer: str) -> None:
    model = parse(f"g (float[n] x) => (float[n] y) {{ a = {inner}(x) b = {outer}(a) y = Neg(b) }}")
    special = np.array([-2.5, -0.5, -0.0, 0.5, 1.5, 2.5, np.inf, np.nan], np.float32)
    finite = special[:-2]
    values = finite if inner == "Softmax" else special
    assert op_types(optimize(model, PASS, {"x": values})) == [inner, "Neg"]


@pytest.mark.parametrize(("inner", "outer"), [("Floor", "Relu"), ("Neg", "Abs"), ("Relu", "Sign")])
def test_other_compositions_stay(inner: str, outer: str) -> None:
    text = f"g (float[n] x) => (float[n] y) {{ a = {inner}(x) b = {outer}(a) y = Neg(b) }}"
    untouched(parse(text), PASS)


def test_function_of_the_same_name_in_another_domain_stays() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "other" : 1]>
        g (float[n] x) => (float[n] y) { a = other.Relu(x) b = Relu(a) y = Neg(b) }"""
    )
    untouched(model, PASS)


@pytest.mark.parametrize("opset", [9, 13, 19])
def test_cast_to_the_same_type(opset: int) -> None:
    model = between("b = Cast<to = 1>(a)", opset=opset)
    assert op_types(optimize(model, PASS, feed(2, 3))) == ["Abs", "Neg"]


def test_cast_to_another_type_stays() -> None:
    untouched(between("b = Cast<to = 11>(a)", y="double[n, 3]"), PASS)


def test_cast_of_an_unknown_type_stays() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "f" : 1]>
        g (double[n] x) => (float[n] y) { y = f.narrow(x) }
        <domain: "f", opset_import: ["" : 18]> narrow(x) => (y) { y = Cast<to = 1>(x) }"""
    )
    untouched(model, PASS, "is not known")


def test_cast_like() -> None:
    model = parse(
        """g (float[n] x, float[1] same, double[1] other) => (double[n] y) {
            a = Abs(x) b = CastLike(a, same) c = Exp(other) d = CastLike(b, c) y = Neg(d) }"""
    )
    values = {**feed(4), "same": np.ones(1, np.float32), "other": np.ones(1)}
    optimized = optimize(model, PASS, values)
    assert op_types(optimized) == ["Abs", "Cast", "Neg"]
    assert optimized.graph.node(1).attributes["to"].as_int() == onnx.TensorProto.DOUBLE


def test_cast_like_keeps_how_it_saturates() -> None:
    model = parse(
        """<ir_version: 9, opset_import: ["" : 19]>
        g (float[n] x, float8e4m3fn[1] t) => (float8e4m3fn[n] y) {
            a = Abs(x) y = CastLike<saturate = 0>(a, t) }"""
    )
    optimized, _ = apply(model, PASS)
    assert optimized.graph.node(1).op_type == "Cast"
    assert optimized.graph.node(1).attributes["saturate"].as_int() == 0


def test_clip_of_whole_numbers_without_bounds() -> None:
    model = between("b = Clip(a)", "int64[n]")
    values = {"x": np.array([-3, 2, np.iinfo(np.int64).max])}
    assert op_types(optimize(model, PASS, values)) == ["Abs", "Neg"]


@pytest.mark.parametrize("opset", [6, 11, 13])
def test_clip_of_floats_without_bounds_limits_infinities_and_stays(opset: int) -> None:
    untouched(between("b = Clip(a)", opset=max(opset, 7)), PASS, "infinities")


def test_clip_with_a_bound_stays() -> None:
    untouched(between("b = Clip(a, m)", "int64[n]", constants="int64 m = {0}"), PASS)
    untouched(between("b = Clip<max = 1.0>(a)", opset=10), PASS)


def test_between_input_and_output_nothing_can_go() -> None:
    model = parse("g (float[n] x) => (float[n] y) <float c = {0}> { y = Add(x, c) }")
    untouched(model, PASS, "made elsewhere")


def test_output_hands_its_name_to_the_input() -> None:
    model = parse("g (float[n] x) => (float[n] y) <float c = {0}> { a = Abs(x) y = Add(a, c) }")
    assert op_types(optimize(model, PASS, feed(3))) == ["Abs"]


def test_two_outputs_of_one_value_keep_both_names() -> None:
    model = parse(
        "g (float[n] x) => (float[n] y, float[n] z) <float c = {0}> { y = Abs(x) z = Add(y, c) }"
    )
    untouched(model, PASS, "made elsewhere")


def test_branch_that_returns_an_outer_value_stays() -> None:
    model = parse(
        """g (bool c, float[n] x) => (float[n] y) <float z = {0}> {
            a = Relu(x)
            y = If (c) <
                then_branch = t () => (float[n] t1) { t1 = Add(a, z) },
                else_branch = e () => (float[n] e1) { e1 = Neg(a) }
            >
        }"""
    )
    untouched(model, PASS, "made elsewhere")


def test_branches_and_functions_are_cleaned_too() -> None:
    branch = parse(
        """g (bool c, float[n] x) => (float[n] y) <float z = {0}> {
            y = If (c) <
                then_branch = t () => (float[n] t1) { a = Add(x, z) t1 = Exp(a) },
                else_branch = e () => (float[n] e1) { b = Sqrt(x) e1 = Sub(b, z) }
            >
        }"""
    )
    for truth in (True, False):
        optimized = optimize(branch, PASS, {"c": np.array(truth), "x": np.ones(3, np.float32)})
        assert op_types(optimized) == ["If", "Exp", "Sqrt"]
    function = parse(
        """<ir_version: 8, opset_import: ["" : 18, "f" : 1]>
        g (float[n] x) => (float[n] y) { y = f.same(x) }
        <domain: "f", opset_import: ["" : 18]> same(x) => (y) {
            a = Neg(x) b = Neg(a) c = Relu(b) y = Relu(c) }"""
    )
    optimized = optimize(function, PASS, feed(3))
    assert [node.op_type for node in next(iter(optimized.functions.values()))] == ["Relu"]


dim = st.sampled_from([1, 1, 2, 3])


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    st.lists(dim, max_size=4), st.lists(dim, max_size=4), st.sampled_from(["Add", "Mul", "Sub"])
)
def test_neutral_operand_of_any_shape(x: list[int], c: list[int], op: str) -> None:
    try:
        y = np.broadcast_shapes(tuple(x), tuple(c))
    except ValueError:
        hypothesis.reject()
    model = between(f"b = {op}(a, c)", f"float{x or ''}", f"float{list(y) or ''}")
    constant = np.full(c, op == "Mul", np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(constant, "c"))
    optimized = optimize(model, PASS, feed(*x))
    assert (op in op_types(optimized)) == (list(y) != x)
