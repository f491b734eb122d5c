import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnxopt.passes.push_transposes import PushTransposes

from onnxopt.model import from_proto, to_proto
from tests.differential import apply, op_types, optimize, parse, run, untouched

NAME = "push-transposes"
PASS = f"infer-shapes,{NAME}"

IN = "Transpose<perm = [0, 3, 1, 2]>"  # channels last to channels first
OUT = "Transpose<perm = [0, 2, 3, 1]>"


def feed(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def array(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def constants(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    return arrays


def graph(
    body: str, constants: str = "", source: str = "n, 4, 6, 3", result: str = "a, b, c, d"
) -> str:
    return f"g (float[{source}] x) => (float[{result}] y) <{constants}> {{ {body} }}"


def transposes(model: ir.Model) -> int:
    return op_types(model).count("Transpose")


# Transpose of Transpose


def test_a_pair_that_cancels_goes() -> None:
    model = parse(graph(f"r = Relu(x) a = {IN}(r) b = {OUT}(a) y = Neg(b)"))
    optimized = optimize(model, PASS, feed(2, 4, 6, 3), feed(0, 4, 6, 3))
    assert op_types(optimized) == ["Relu", "Neg"]


def test_a_pair_merges() -> None:
    model = parse(graph(f"a = {IN}(x) y = {IN}(a)"))
    optimized = optimize(model, PASS, feed(2, 4, 6, 3))
    assert op_types(optimized) == ["Transpose"]
    assert list(next(iter(optimized.graph)).attributes["perm"].value) == [0, 2, 3, 1]


def test_the_default_permutation_reverses_the_axes() -> None:
    model = parse(
        "g (float[n, 2, 3] x) => (float[n, 2, 3] y) { r = Relu(x) a = Transpose(r)"
        " b = Transpose(a) y = Neg(b) }"
    )
    assert op_types(optimize(model, PASS, feed(4, 2, 3))) == ["Relu", "Neg"]


def test_an_identity_goes() -> None:
    model = parse(graph("a = Transpose<perm = [0, 1, 2, 3]>(x) y = Neg(a)"))
    assert op_types(optimize(model, PASS, feed(2, 4, 6, 3))) == ["Neg"]


def test_a_pair_between_an_input_and_an_output_stays() -> None:
    untouched(parse(graph(f"a = {IN}(x) y = {OUT}(a)")), PASS, "made elsewhere")


def test_a_pair_whose_middle_is_read_elsewhere_is_not_made_three() -> None:
    model = parse(
        """g (float[n, 2, 3] x) => (float[a, b, c] y, float[d, e, f] z) {
            t = Transpose<perm = [0, 2, 1]>(x) u = Transpose<perm = [2, 1, 0]>(t)
            y = MatMul(u, u2) z = MatMul(t, t2)
        }""",
        {"u2": array(4, 2), "t2": array(2, 2)},
    )
    assert transposes(optimize(model, PASS, feed(4, 2, 3))) == 2


def test_a_parameter_of_a_function_stays() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (float[n, 2] x) => (float[n, 2] y) { y = local.f<p = [1, 0]>(x) }
        <opset_import: ["" : 18], domain: "local">
        f <p>(x) => (y) { a = Transpose<perm: ints = @p>(x) y = Transpose<perm = [1, 0]>(a) }"""
    )
    untouched(model, PASS)


def test_transposes_of_the_same_value_become_one() -> None:
    model = parse(
        """g (float[n, 2, 3] x) => (float[n, 3, 4] y, float[n, 3, 4] z) {
            t = Transpose<perm = [0, 2, 1]>(x) u = Transpose<perm = [0, 2, 1]>(x)
            y = MatMul(t, w) z = MatMul(u, w)
        }""",
        {"w": array(2, 4)},
    )
    assert transposes(optimize(model, PASS, feed(5, 2, 3))) == 1


# One operator between a pair


BETWEEN = [
    ("Relu({})", ""),
    ("Clip({}, k, l)", "float k = {-1}, float l = {1}"),
    ("LeakyRelu<alpha = 0.1>({})", ""),
    ("HardSwish({})", ""),
    ("Cast<to = 1>({})", ""),
    ("Add({}, k)", "float k = {2}"),
    ("Mul(k, {})", "float[1, 1] k = {2}"),
    ("Add({}, {})", ""),
    ("Sub(k3, {})", ""),
    ("Mul({}, k311)", ""),
    ("Div({}, k1346)", ""),
    ("PRelu({}, k311)", ""),
    ("Max({}, k311, k1346)", ""),
    ("Where(m311, {}, k311)", ""),
    ("Pad({}, pads)", "int64[8] pads = {0, 1, 0, 2, 0, 0, 3, 1}"),
    ('Pad<mode = "reflect">({}, pads)', "int64[8] pads = {0, 1, 0, 2, 0, 0, 3, 1}"),
    ("Slice({}, k, l, ax)", "int64[2] k={1, 0}, int64[2] l={3, -1}, int64[2] ax={1, -1}"),
    ("Slice({}, k, l)", "int64[2] k={0, 1}, int64[2] l={9, 3}"),
    ("Slice({}, k, l, ax)", "int32[1] k={1}, int32[1] l={3}, int32[1] ax={2}"),
    ("ReduceMean({}, ax)", "int64[2] ax = {2, 3}"),
    ("ReduceSum({}, ax)", "int64[1] ax = {-1}"),
    ("ReduceMax({})", ""),
    ("ReduceL2({}, ax)", "int64[1] ax = {1}"),
    ("Tile({}, k)", "int64[4] k = {1, 2, 3, 1}"),
    ("Gather<axis = 1>({}, k)", "int64[3] k = {2, 0, 1}"),
    ("Concat<axis = 1>({}, {})", ""),
    ("Concat<axis = -1>({}, k2346)", ""),
    ("Resize({}, , s)", "float[4] s = {1, 1, 2, 2}"),
    ("Resize({}, , , s)", "int64[4] s = {2, 3, 8, 3}"),
]


@pytest.mark.parametrize(("operator", "constants"), BETWEEN)
def test_operator_between_a_pair(operator: str, constants: str) -> None:
    body = f"a = {IN}(x) b = {operator.replace('{}', 'a')} c = {OUT}(b) y = Neg(c)"
    arrays = {"k3": array(6), "k311": array(3, 1, 1), "k1346": array(1, 3, 4, 6)}
    arrays["k2346"] = array(2, 3, 4, 6)
    arrays["m311"] = array(3, 1, 1) > 0
    used = {name: value for name, value in arrays.items() if name in operator}
    optimized = optimize(parse(graph(body, constants), used), PASS, feed(2, 4, 6, 3))
    assert transposes(optimized) == 0


OLD = [
    (7, "Slice<axes = [1], starts = [1], ends = [3]>({})"),
    (9, "Slice<starts = [0, 1], ends = [9, 3]>({})"),
    (7, "Pad<pads = [0, 1, 0, 2, 0, 0, 3, 1]>({})"),
    (7, "Upsample<scales = [1.0, 1.0, 2.0, 3.0]>({})"),
    (9, "Upsample({}, s)"),
    (10, "Resize({}, s)"),
    (11, "ReduceMean<axes = [2, 3]>({})"),
    (11, "ReduceSum<axes = [-1]>({})"),
    (11, "Concat<axis = 1>({}, {})"),
    (7, "Add({}, k)"),
]


@pytest.mark.parametrize(("opset", "operator"), OLD)
def test_operator_of_an_old_opset_between_a_pair(opset: int, operator: str) -> None:
    body = f"a = {IN}(x) b = {operator.replace('{}', 'a')} c = {OUT}(b) y = Neg(c)"
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> {graph(body)}'
    arrays = {"s": np.array([1, 1, 2, 3], np.float32), "k": array(3, 1, 1)}
    used = {name: value for name, value in arrays.items() if f", {name})" in operator}
    optimized = optimize(parse(text, used), PASS, feed(2, 4, 6, 3))
    assert transposes(optimized) == 0


@pytest.mark.parametrize(
    ("operator", "constants"),
    [
        ("Pad(a, pads, , ax)", "int64[4] pads = {1, 2, 0, 1}, int64[2] ax = {-1, 1}"),
        ("Resize<axes = [2, 3]>(a, , s)", "float[2] s = {2, 3}"),
    ],
)
def test_operator_along_some_axes_between_a_pair(operator: str, constants: str) -> None:
    """Held against ONNX's reference: ONNX Runtime's own optimizer fails on these models."""
    model = parse(graph(f"a = {IN}(x) b = {operator} c = {OUT}(b) y = Neg(c)", constants))
    optimized, _ = apply(model, PASS)
    assert transposes(optimized) == 0
    models = (model, to_proto(optimized))
    before, after = (ReferenceEvaluator(each).run(None, feed(2, 4, 6, 3)) for each in models)
    np.testing.assert_array_equal(after[0], before[0])


def test_interpolation_stays_where_the_outer_axes_are_left_alone() -> None:
    body = f"""a = {IN}(x) b = Resize<mode = "linear">(a, , s) c = {OUT}(b) y = Neg(c)"""
    untouched(parse(graph(body, "float[4] s = {1, 1, 2, 2}")), PASS, "no other layout")


def test_interpolation_moves_to_where_the_outer_axes_are_left_alone() -> None:
    body = f"""a = {OUT}(x) b = Resize<mode = "linear">(a, , s) c = {IN}(b) y = Neg(c)"""
    model = parse(graph(body, "float[4] s = {1, 2, 3, 1}", "n, 3, 4, 5"))
    assert transposes(optimize(model, PASS, feed(2, 3, 4, 5))) == 0


def test_split_between_pairs() -> None:
    body = f"""a = {IN}(x) b, c = Split<axis = 1, num_outputs = 2>(a)
        d = {OUT}(b) e = {OUT}(c) y = Sub(d, e)"""
    model = parse(graph(body, source="n, 4, 5, 6"))
    assert transposes(optimize(model, PASS, feed(2, 4, 5, 6))) == 0


def test_quantization_between_a_pair() -> None:
    body = f"""a = {IN}(x) b = QuantizeLinear<axis = 1>(a, s, z)
        c = DequantizeLinear<axis = 1>(b, s, z) d = {OUT}(c) y = Neg(d)"""
    scales = constants(s=np.array([0.1, 0.2, 0.3], np.float32), z=np.array([3, 4, 5], np.uint8))
    optimized = optimize(parse(graph(body), scales), PASS, feed(2, 4, 6, 3))
    assert transposes(optimized) == 0
    one = constants(s=np.array(0.1, np.float32), z=np.array(3, np.uint8))
    optimized = optimize(parse(graph(body), one), PASS, feed(2, 4, 6, 3))
    assert transposes(optimized) == 0


@pytest.mark.parametrize(
    ("operator", "constants", "reads"),
    [
        ("Softmax<axis = 1>({})", "", ""),
        ("LRN<size = 3>({})", "", ""),
        ("MaxPool<kernel_shape = [2, 2]>({})", "", ""),
        ("InstanceNormalization({}, k3, k3)", "", ""),
        ("Pad({}, p)", "", ", int64[8] p"),
        ("Slice({}, k, l, p)", "int64[1] k = {1}, int64[1] l = {2}", ", int64[1] p"),
        ("Add({}, p)", "", ", float[6] p"),
    ],
)
def test_operator_that_keeps_its_layout_stays(operator: str, constants: str, reads: str) -> None:
    body = f"a = {IN}(x) b = {operator.replace('{}', 'a')} c = {OUT}(b) y = Neg(c)"
    text = graph(body, constants).replace("] x)", f"] x{reads})")
    untouched(parse(text, {"k3": array(3)} if "k3" in operator else {}), PASS, "no other layout")


def test_softmax_along_the_last_axis_moves_only_where_that_stays_last() -> None:
    swap = "Transpose<perm = [0, 2, 1, 3]>"
    model = parse(graph(f"a = {swap}(x) b = Softmax<axis = 3>(a) c = {swap}(b) y = Neg(c)"))
    assert transposes(optimize(model, PASS, feed(2, 4, 6, 3))) == 0


# Several operators


def test_residual_and_constant_are_followed() -> None:
    body = f"""a = {IN}(x) b = Conv(a, w) c = {OUT}(b) d = Add(c, k) e = Relu(d) f = {IN}(e)
        g = Conv(f, w) h = {OUT}(g) i = Add(h, e) j = {IN}(i) y = Conv(j, w)"""
    model = parse(graph(body), {"w": array(3, 3, 1, 1), "k": array(3)})
    optimized = optimize(model, PASS, feed(2, 4, 6, 3))
    assert transposes(optimized) == 1
    assert op_types(optimized)[0] == "Transpose"


def test_a_region_switches_in_part() -> None:
    """The branch that leaves in the old layout keeps it, the rest does not."""
    model = parse(
        f"""g (float[n, 3, 4, 6] x) => (float[n, 4, 6, 3] z, float[n, 3, 4, 6] y) {{
            a = Conv(x, w) b = {OUT}(a) c = Relu(b) z = Neg(c) d = Add(c, k) e = Abs(d) f = {IN}(e)
            y = Conv(f, w)
        }}""",
        {"w": array(3, 3, 1, 1), "k": array(3)},
    )
    optimized = optimize(model, PASS, feed(2, 3, 4, 6))
    assert transposes(optimized) == 1


def test_a_lone_transpose_is_not_moved() -> None:
    untouched(
        parse(
            graph(f"r = Relu(x) a = {IN}(r) b = Neg(a) y = Conv(b, w)"), {"w": array(3, 3, 1, 1)}
        ),
        PASS,
        "no other layout",
    )


def test_a_transpose_is_not_put_between_conv_and_its_activation() -> None:
    """Where two places are as good, runtimes' fusions decide."""
    body = f"""b = Conv(x, w) r = Relu(b) a = {OUT}(r) c = {IN}(a) d = Relu(c) e = {OUT}(d)
        y = MatMul(e, m)"""
    model = parse(graph(body, source="n, 3, 4, 6"), {"w": array(3, 3, 1, 1), "m": array(3, 2)})
    optimized = optimize(model, PASS, feed(2, 3, 4, 6))
    assert op_types(optimized) == ["Conv", "Relu", "Relu", "Transpose", "MatMul"]


def test_a_transpose_is_not_put_between_conv_and_its_quantization() -> None:
    """Runtimes make one integer operator of DequantizeLinear, Conv and QuantizeLinear."""
    body = f"""c = Conv(x, w) q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z)
        a = {OUT}(d) b = {IN}(a) p = QuantizeLinear(b, s, z) e = DequantizeLinear(p, s, z)
        t = {OUT}(e) y = MatMul(t, m)"""
    arrays = constants(
        w=array(3, 3, 1, 1), m=array(3, 2), s=np.array(0.1, np.float32), z=np.array(7, np.uint8)
    )
    optimized = optimize(parse(graph(body, source="n, 3, 4, 6"), arrays), PASS, feed(2, 3, 4, 6))
    assert transposes(optimized) == 1
    assert op_types(optimized)[:3] == ["Conv", "QuantizeLinear", "DequantizeLinear"]


def test_fewer_but_larger_is_not_better() -> None:
    """Two small transposes before an Expand are not one large one after it."""
    model = parse(
        """g (float[n, 1, 3] x) => (float[a, b, c] y) <int64[3] s = {1, 500, 1}> {
            t = Transpose<perm = [0, 2, 1]>(x) u = Tile(t, r) v = Relu(u) y = MatMul(v, w)
        }""",
        {"r": np.array([1, 1, 500]), "w": array(500, 2)},
    )
    untouched(model, PASS, "no other layout")


def test_attention_keeps_its_transposes() -> None:
    heads = "int64[4] s = {0, 0, 2, 4}, int64[3] m = {0, 0, 8}, float k = {0.5}"
    body = """q1 = MatMul(x, wq) q2 = Reshape(q1, s) q = Transpose<perm = [0, 2, 1, 3]>(q2)
        k1 = MatMul(x, wk) k2 = Reshape(k1, s) kt = Transpose<perm = [0, 2, 3, 1]>(k2)
        v1 = MatMul(x, wv) v2 = Reshape(v1, s) v = Transpose<perm = [0, 2, 1, 3]>(v2)
        d = Mul(q, k) a = MatMul(d, kt) p = Softmax<axis = -1>(a) o = MatMul(p, v)
        ot = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape(ot, m)"""
    weights = {name: array(8, 8) for name in ("wq", "wk", "wv")}
    untouched(parse(graph(body, heads, "n, 5, 8", "a, b, c"), weights), PASS)


def test_attention_keeps_its_key_cache() -> None:
    """One Transpose less is possible; ONNX Runtime would not find its attention then."""
    model = parse(
        """g (float[n, 5, 2, 4] x, float[n, 2, 3, 4] past, float[n, 2, 5, 4] q)
        => (float[n, 2, 8, 4] present, float[n, 2, 5, 8] y) {
            k = Transpose<perm = [0, 2, 3, 1]>(x) p = Transpose<perm = [0, 1, 3, 2]>(past)
            c = Concat<axis = -1>(p, k) y = MatMul(q, c)
            present = Transpose<perm = [0, 1, 3, 2]>(c)
        }"""
    )
    untouched(model, PASS, "no other layout")


def test_outputs_in_both_layouts_keep_their_names() -> None:
    model = parse(
        f"""g (float[n, 3, 4, 6] x)
        => (float[n, 4, 6, 3] r, float[n, 3, 4, 6] t, float[n, 3, 4, 6] y) {{
            a = Conv(x, w) b = {OUT}(a) r = Relu(b) t = {IN}(r) c = Abs(t) y = Conv(c, w)
        }}""",
        {"w": array(3, 3, 1, 1)},
    )
    assert transposes(optimize(model, PASS, feed(2, 3, 4, 6))) == 1


def test_value_read_in_a_branch() -> None:
    model = parse(
        f"""g (bool c, float[n, 3, 4, 6] x) => (float[n, 4, 6, 3] z, float[n, 3, 4, 6] y) {{
            a = Conv(x, w) b = {OUT}(a) r = Relu(b) t = {IN}(r) y = Conv(t, w)
            z = If (c) <
                then_branch = u () => (float[n, 4, 6, 3] t1) {{ t1 = Neg(r) }},
                else_branch = e () => (float[n, 4, 6, 3] e1) {{ e1 = Abs(r) }}
            >
        }}""",
        {"w": array(3, 3, 1, 1)},
    )
    feeds = [{**feed(2, 3, 4, 6), "c": np.array(flag)} for flag in (True, False)]
    assert transposes(optimize(model, PASS, *feeds)) == 1


def test_region_in_a_branch() -> None:
    model = parse(
        f"""g (bool c, float[n, 4, 6, 3] x) => (float[n, 4, 6, 3] y) {{
            y = If (c) <
                then_branch = u () => (float[n, 4, 6, 3] t1) {{
                    a = {IN}(x) b = Mul(a, k) d = {OUT}(b) t1 = Neg(d)
                }},
                else_branch = e () => (float[n, 4, 6, 3] e1) {{ e1 = Abs(x) }}
            >
        }}""",
        {"k": array(3, 1, 1)},
    )
    feeds = [{**feed(2, 4, 6, 3), "c": np.array(flag)} for flag in (True, False)]
    assert transposes(optimize(model, PASS, *feeds)) == 0


def test_region_in_a_function() -> None:
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (float[n, 4, 6, 3] x) => (float[n, 4, 6, 3] y) {{ y = local.f(x) }}
        <opset_import: ["" : 18], domain: "local">
        f (x) => (y) {{
            a = {IN}(x) b = Transpose<perm = [0, 1, 2, 3]>(a) c = {OUT}(b) y = Neg(c)
        }}"""
    )
    optimized = optimize(model, PASS, feed(2, 4, 6, 3))
    (function,) = optimized.functions.values()
    assert [node.op_type for node in function] == ["Neg"]


def test_custom_operator_keeps_its_layout() -> None:
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 18, "custom" : 1]>
        {graph(f"a = {IN}(x) b = custom.Relu(a) c = {OUT}(b) y = Neg(c)")}"""
    )
    untouched(model, PASS, "no other layout")


# Constants


def test_large_constant_that_is_read_elsewhere_is_not_stored_twice() -> None:
    model = parse(
        f"""g (float[n, 20, 30, 3] x) => (float[a, b, c, d] y, float[3, 20, 30] z) {{
            a = {IN}(x) b = Add(a, k) c = {OUT}(b) y = Neg(c) z = Neg(k)
        }}""",
        {"k": array(3, 20, 30)},
    )
    untouched(model, PASS, "no other layout")


def test_small_constant_that_is_read_elsewhere_is_copied() -> None:
    model = parse(
        f"""g (float[n, 4, 6, 3] x) => (float[a, b, c, d] y, float[3, 1, 1] z) {{
            a = {IN}(x) b = Add(a, k) c = {OUT}(b) y = Neg(c) z = Neg(k)
        }}""",
        {"k": array(3, 1, 1)},
    )
    assert transposes(optimize(model, PASS, feed(2, 4, 6, 3))) == 0


def test_constant_that_the_user_may_override_stays() -> None:
    text = graph(f"a = {IN}(x) b = Add(a, k) c = {OUT}(b) y = Neg(c)")
    text = text.replace("] x)", "] x, float[3, 1, 1] k = {1, 2, 3})")
    untouched(parse(text), PASS, "no other layout")


# Axes that go


@pytest.mark.parametrize(
    ("operator", "constants", "result"),
    [
        ("ReduceMean<keepdims = 0>(a, k)", "int64[2] k = {2, 3}", "n, c"),
        ("ReduceMax<keepdims = 0>(a)", "", ""),
        ("ArgMax<axis = 1, keepdims = 0>(a)", "", "n, h, w"),
        ("Gather<axis = 1>(a, k)", "int64 k = {1}", "n, h, w"),
    ],
)
def test_transpose_before_a_reduction_goes(operator: str, constants: str, result: str) -> None:
    element = "int64" if "Arg" in operator else "float"
    text = graph(f"a = {IN}(x) y = {operator}", constants, result=result)
    text = text.replace(f"(float[{result}] y", f"({element}{f'[{result}]' if result else ''} y")
    assert transposes(optimize(parse(text), PASS, feed(2, 4, 6, 3))) == 0


def test_reduction_that_would_change_the_order_of_the_rest_stays() -> None:
    text = graph(
        f"a = {IN}(x) y = ReduceMean<keepdims = 0>(a, k)", "int64[1] k = {2}", result="a, b, c"
    )
    untouched(parse(text), PASS, "no other layout")


@pytest.mark.parametrize(
    ("source", "operator", "constants", "shape"),
    [
        ("n, 1, 1, 3", "Flatten(a)", "", (2, 1, 1, 3)),
        ("n, 1, 1, 3", "Reshape(a, s)", "int64[2] s = {0, 3}", (2, 1, 1, 3)),
        ("n, 1, 1, 3", "Reshape(a, s)", "int64[2] s = {-1, 3}", (2, 1, 1, 3)),
        ("n, 1, 1, 3", "Squeeze(a, s)", "int64[2] s = {2, 3}", (2, 1, 1, 3)),
        ("n, 5, 1, 1", "Flatten<axis = 3>(a)", "", (2, 5, 1, 1)),
    ],
)
def test_transpose_of_axes_of_one_element_goes(
    source: str, operator: str, constants: str, shape: tuple[int, ...]
) -> None:
    model = parse(graph(f"a = {IN}(x) y = {operator}", constants, source, "a, b"))
    assert transposes(optimize(model, PASS, feed(*shape))) == 0


def test_reshape_of_axes_that_move_stays() -> None:
    text = graph(f"a = {IN}(x) y = Flatten(a)", result="a, b")
    untouched(parse(text), PASS, "no other layout")


def test_zero_that_would_copy_another_axis_stays() -> None:
    text = graph(f"a = {IN}(x) y = Reshape(a, s)", "int64[2] s = {1, 0}", "1, 1, 1, n", "a, b")
    untouched(parse(text), PASS, "no other layout")


@pytest.mark.parametrize(
    ("operator", "constants"),
    [
        ("Reshape(x, s)", "int64[4] s = {0, 1, 1, 3}"),
        ("Reshape(x, s)", "int64[4] s = {-1, 1, 1, 3}"),
        ("Unsqueeze(x, s)", "int64[2] s = {1, 2}"),
    ],
)
def test_transpose_of_added_axes_goes(operator: str, constants: str) -> None:
    """As in squeeze-and-excitation blocks."""
    body = f"a = {operator} b = {IN}(a) y = Conv(b, w)"
    model = parse(graph(body, constants, "n, 3", "n, 2, 1, 1"), {"w": array(2, 3, 1, 1)})
    assert transposes(optimize(model, PASS, feed(2, 3), feed(1, 3))) == 0


def test_one_dimensional_convolution_by_way_of_two() -> None:
    """Unsqueeze, Transpose, Conv, Transpose, Squeeze, twice: the inner ones meet on three axes."""
    body = f"""u = Unsqueeze(x, one) a = {IN}(u) b = Conv(a, w) c = {OUT}(b) d = Squeeze(c, one)
        e = Add(d, k) r = Relu(e)
        v = Unsqueeze(r, one) f = {IN}(v) h = Conv(f, w) i = {OUT}(h) y = Squeeze(i, one)"""
    model = parse(
        graph(body, "int64[1] one = {1}", "n, 5, 3", "n, 5, 3"),
        {"w": array(3, 3, 1, 1), "k": array(3)},
    )
    optimized = optimize(model, PASS, feed(2, 5, 3))
    assert transposes(optimized) == 2
    text = '<ir_version: 8, opset_import: ["" : 11]> ' + graph(
        body.replace("(x, one)", "<axes=[1]>(x)")
        .replace("(r, one)", "<axes=[1]>(r)")
        .replace("(c, one)", "<axes=[1]>(c)")
        .replace("(i, one)", "<axes=[1]>(i)"),
        "",
        "n, 5, 3",
        "n, 5, 3",
    )
    optimized = optimize(parse(text, {"w": array(3, 3, 1, 1), "k": array(3)}), PASS, feed(2, 5, 3))
    assert transposes(optimized) == 2


def test_squeeze_whose_transpose_is_read_elsewhere_stays() -> None:
    model = parse(
        f"""g (float[n, 1, 6, 3] x) => (float[n, 3, 6] y, float[n, 2, 1, 6] z)
        <int64[1] two = {{2}}> {{ a = {IN}(x) y = Squeeze(a, two) z = Conv(a, w) }}""",
        {"w": array(2, 3, 1, 1)},
    )
    untouched(model, PASS, "read elsewhere")


# Shape


@pytest.mark.parametrize(
    ("opset", "operator", "gathers"),
    [
        (13, "Shape(a)", 1),
        (18, "Shape<start = 1>(a)", 1),
        (18, "Shape<start = -3, end = -1>(a)", 1),
        (18, "Size(a)", 0),
    ],
)
def test_transpose_before_shape_goes(opset: int, operator: str, gathers: int) -> None:
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[n, 4, 6, 3] x) => (int64[...] y) {{ a = {IN}(x) y = {operator} }}""".replace(
            "[...]", "" if "Size" in operator else "[k]"
        )
    )
    optimized = optimize(model, PASS, feed(2, 4, 6, 3))
    assert transposes(optimized) == 0
    assert op_types(optimized).count("Gather") == gathers


def test_shape_of_a_transpose_that_stays_is_left() -> None:
    body = f"a = {IN}(x) s = Shape(a) c = Conv(a, w) y = Expand(c, s)"
    untouched(parse(graph(body), {"w": array(3, 3, 1, 1)}), PASS, "no other layout")


# Gemm


@pytest.mark.parametrize("flag", [0, 1])
def test_gemm_transposes_its_operands(flag: int) -> None:
    model = parse(
        f"""g (float[n, n] x) => (float[a, b] y) <float[2] c = {{1, 2}}> {{
            t = Transpose(x) y = Gemm<transA = {flag}>(t, w, c)
        }}""",
        {"w": array(3, 2)},
    )
    optimized = optimize(model, PASS, feed(3, 3))
    assert op_types(optimized) == ["Gemm"]
    model = parse(
        f"g (float[n, n] x) => (float[n, n] y) {{ r = Relu(x) t = Transpose(x)"
        f" y = Gemm<transB = {flag}>(r, t) }}"
    )
    assert op_types(optimize(model, PASS, feed(3, 3))) == ["Relu", "Gemm"]


# A whole network


def channels_last_network() -> onnx.ModelProto:
    """What TensorFlow exports: every convolution and pooling between two Transposes."""
    constants: dict[str, np.ndarray] = {
        "pads": np.array([0, 1, 1, 0, 0, 1, 1, 0]),
        "halves": np.array([8, 8]),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
        "fc": array(8, 5),
    }
    body: list[str] = []

    def add(text: str) -> str:
        body.append(f"v{len(body)} = {text}")
        return f"v{len(body) - 1}"

    def first(text: str, source: str) -> str:
        """An operator that wants channels first."""
        return add(f"{OUT}({add(text.format(add(f'{IN}({source})')))})")

    def convolution(source: str, inputs: int, outputs: int, kernel: int = 3) -> str:
        number = len(body)
        constants[f"w{number}"] = array(outputs, inputs, kernel, kernel)
        constants[f"g{number}"], constants[f"b{number}"] = array(outputs), array(1, outputs)
        pad = kernel // 2
        result = first(f"Conv<pads = [{pad}, {pad}, {pad}, {pad}]>({{}}, w{number})", source)
        return add(f"Add({add(f'Mul({result}, g{number})')}, b{number})")

    value = add(f"Relu({convolution('x', 3, 8)})")
    value = first("MaxPool<kernel_shape = [2, 2], strides = [2, 2]>({})", value)
    for _ in range(2):
        inner = add(f"Clip({convolution(value, 8, 8)}, zero, six)")
        value = add(f"Relu({add(f'Add({value}, {convolution(inner, 8, 8)})')})")
    value = add(f"Pad({value}, pads)")
    left = add(f"Sigmoid({convolution(value, 8, 4, 1)})")
    right = add(f"Tanh({convolution(value, 8, 4)})")
    value = add(f"Concat<axis = -1>({left}, {right}, {value})")
    gate = add(f"ReduceMean<axes = [1, 2], keepdims = 1>({value})")
    value = add(f"Mul({value}, {add(f'HardSigmoid({convolution(gate, 16, 16, 1)})')})")
    body.append(f"s1, s2 = Split<axis = 3>({value}, halves)")
    value = add("Mul(s1, s2)")
    value = add(f"ReduceMean<axes = [1, 2], keepdims = 0>({value})")
    body.append(f"y = MatMul({value}, fc)")
    return parse(
        '<ir_version: 8, opset_import: ["" : 13]> '
        f"g (float[n, 16, 16, 3] x) => (float[n, 5] y) {{ {' '.join(body)} }}",
        constants,
    )


def test_inner_transposes_of_a_channels_last_network_cancel() -> None:
    model = channels_last_network()
    assert [node.op_type for node in model.graph.node].count("Transpose") == 18
    optimized = optimize(model, PASS, feed(2, 16, 16, 3))
    assert transposes(optimized) == 1
    assert op_types(optimized)[0] == "Transpose"


def test_the_first_changes_alone_are_right_too() -> None:
    """Bisection stops a pass after some of its changes."""
    model = channels_last_network()
    expected = run(model, feed(1, 16, 16, 3))
    for most in range(3):
        pass_, changed = PushTransposes(), from_proto(model)
        pass_.max_rewrites = most
        outcome = pass_.run(changed)
        assert outcome.rewritten.total() <= most
        np.testing.assert_allclose(
            run(to_proto(changed), feed(1, 16, 16, 3))[0], expected[0], rtol=1e-4, atol=1e-5
        )


PERMUTATIONS = ["0, 2, 3, 1", "0, 3, 1, 2", "0, 2, 3, 1", "0, 3, 1, 2", "0, 1, 3, 2", "3, 2, 1, 0"]
#: Each takes cubes of one size and gives one, so that any two values can meet in any layout.
OPERATORS = [
    "v = Relu(a)",
    "v = Add(a, k)",
    "v = Add(a, b)",
    "v = Mul(a, full)",
    "v = Softmax<axis = AXIS>(a)",
    "v = CumSum(a, sAXIS)",
    "w = Concat<axis = AXIS>(a, b) v = Slice(w, zeros, threes)",
    "w = Pad(a, pads) v = Slice(w, zeros, threes)",
    "w = Slice(a, one, two, iAXIS) v = Mul(w, b)",
    "w = ReduceMax<axes = [AXIS]>(a) v = Add(w, b)",
    "w = Resize(a, , scales) v = Slice(w, zeros, threes)",
    "w = Shape(a) v = Expand(b, w)",
    "w = ReduceMax<axes = [AXIS], keepdims = 0>(a) u = Unsqueeze(w, iAXIS) v = Add(u, b)",
    "w = ArgMax<axis = AXIS>(a) u = Cast<to = 1>(w) v = Max(u, a)",
    "w, u = Split<axis = AXIS>(a, sizes) v = Concat<axis = AXIS>(u, w)",
]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_graph_gives_the_same_numbers_with_no_more_transposes(data: st.DataObject) -> None:
    values, body = ["x"], []
    for index in range(data.draw(st.integers(3, 12))):
        recent = st.sampled_from(values[-4:])
        if data.draw(st.booleans()):
            text = f"v = Transpose<perm = [{data.draw(st.sampled_from(PERMUTATIONS))}]>(a)"
        else:
            text = data.draw(st.sampled_from(OPERATORS))
            text = text.replace("AXIS", str(data.draw(st.integers(0, 3))))
        names = {"a": data.draw(recent), "b": data.draw(recent)}
        names |= {name: f"{name}{index}" for name in "vwu"}
        tokens = re.split(r"\b([abvwu])\b", text)
        body.append("".join(names.get(token, token) for token in tokens))
        values.append(f"v{index}")
    outputs = data.draw(st.lists(st.sampled_from(values[1:]), min_size=1, max_size=3, unique=True))
    signature = ", ".join(f"float[3, 3, 3, 3] {name}" for name in outputs)
    constants = {
        "k": array(3),
        "full": array(3, 1, 3),
        "pads": np.array([1, 0, 2, 0, 0, 1, 0, 3]),
        "one": np.array([1]),
        "two": np.array([2]),
        "sizes": np.array([1, 2]),
        "zeros": np.zeros(4, np.int64),
        "threes": np.full(4, 3, np.int64),
        "scales": np.array([1, 1, 2, 3], np.float32),
        **{f"i{axis}": np.array([axis]) for axis in range(4)},
        **{f"s{axis}": np.array(axis) for axis in range(4)},
    }
    model = parse(
        '<ir_version: 8, opset_import: ["" : 13]> '
        f"g (float[3, 3, 3, 3] x) => ({signature}) {{ {' '.join(body)} }}",
        constants,
    )
    optimized = optimize(model, PASS, feed(3, 3, 3, 3))
    assert transposes(optimized) <= [node.op_type for node in model.graph.node].count("Transpose")
    _, outcomes = apply(to_proto(optimized), PASS)
    assert not outcomes[NAME].modified, "a second run finds nothing"
