import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.model import from_proto, to_proto
from onnxopt.pass_manager import PassManager, parse_pipeline
from tests.differential import apply, op_types, optimize, parse, run, untouched
from tests.passes.folding import (
    PASS,
    WORKER,
    assert_not_larger,
    count_sessions,
    one_run,
    reasons,
    x2,
)

# What is folded


def test_shape_arithmetic_is_folded_without_a_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WORKER, lambda: pytest.fail("was started"))
    model = parse(
        """g (float[n, 12] x) => (float[a, b, c] y)
        <float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, int64[1] minus = {-1}> {
            s = Shape(w) i = Constant<value_int = 1>() k = Gather(s, i)
            two = Constant<value_ints = [2]>() zero = Constant<value_ints = [0]>()
            u = Unsqueeze(k, zero) m = Mul(u, two) t = Concat<axis = 0>(minus, u, m)
            y = Reshape(x, t)
        }"""
    )
    optimized, outcome = one_run(model)
    assert op_types(optimized) == ["Reshape"]
    assert outcome.rewritten == {"fold-directly": 1}
    assert set(optimized.graph.initializers) == {"t"}


def test_arithmetic_on_floats_is_the_runtimes_own() -> None:
    model = parse(
        """g (float[n, 3] x) => (float[n, 3] y) <float[3] c = {0.1, 0.7, 2.3}> {
            e = Exp(c) s = Sqrt(e) t = Tanh(s) y = Mul(x, t)
        }"""
    )
    optimized = optimize(model, PASS, {"x": np.ones((2, 3), np.float32)}, rtol=0, atol=0)
    assert op_types(optimized) == ["Mul"]
    assert one_run(model)[1].rewritten == {"fold-in-runtime": 1}


def test_a_chain_takes_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_sessions(monkeypatch)
    lines = ["v0 = Exp(c)"] + [f"v{i} = Sqrt(v{i - 1})" for i in range(1, 200)]
    lines += ["x0 = Add(x, v0)"] + [f"x{i} = Add(x{i - 1}, v{i})" for i in range(1, 200)]
    model = parse(
        f"g (float[2] x) => (float[2] y) <float[2] c = {{1, 2}}> {{ {' '.join(lines)} "
        "y = Neg(x199) }"
    )
    optimized, outcome = one_run(model)
    assert op_types(optimized) == ["Add"] * 200 + ["Neg"]
    assert outcome.rewritten == {"fold-in-runtime": 200}
    assert len(calls) == 1
    np.testing.assert_allclose(run(model, x2())[0], run(to_proto(optimized), x2())[0])


def test_results_of_unknown_size_open_the_way_for_others() -> None:
    model = parse(
        """g (float[n, 5] x) => (float[n, 5] y) <int64[1] n5 = {5}> {
            ones = ConstantOfShape<value = float[1] {1}>(n5) nz = NonZero(ones)
            t = Transpose(nz) axis = Constant<value_ints = [1]>() i = Squeeze(t, axis)
            f = Cast<to = 1>(i) e = Exp(f) y = Mul(x, e)
        }"""
    )
    optimized = optimize(model, PASS, {"x": np.ones((2, 5), np.float32)})
    assert op_types(optimized) == ["Mul"]


def test_float_ranges_are_folded() -> None:
    model = parse(
        """g (float[n] x) => (float[n] y) <float a = {0}, float b = {1}, float d = {0.1}> {
            r = Range(a, b, d) s = ReduceMax(r) y = Mul(x, s)
        }"""
    )
    assert op_types(optimize(model, PASS, {"x": np.ones(2, np.float32)})) == ["Mul"]


def test_several_outputs_are_folded() -> None:
    model = parse(
        """g (float[2] x) => (float[2] y) <float[4] c = {4, 1, 3, 2}, int64[1] k = {2}> {
            v, i = TopK(c, k) f = Cast<to = 1>(i) a = Mul(x, v) y = Add(a, f)
        }"""
    )
    assert op_types(optimize(model, PASS, x2())) == ["Mul", "Add"]


def test_dropout_outside_training_is_folded() -> None:
    model = parse(
        "g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { d = Dropout(c) y = Mul(x, d) }"
    )
    assert op_types(optimize(model, PASS, x2())) == ["Mul"]


def test_empty_tensors_are_folded() -> None:
    model = parse(
        """g (float[n] x) => (float[n] y) <float[0] e = {}, int64[1] z = {0}> {
            a = Exp(e) b = Concat<axis = 0>(a, e) y = Concat<axis = 0>(x, b)
        }"""
    )
    assert op_types(optimize(model, PASS, {"x": np.ones(4, np.float32)})) == ["Concat"]


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 17, 20])
def test_every_opset_is_understood(opset: int) -> None:
    inputs = opset >= 13
    squeeze = "Squeeze(u, zero)" if inputs else "Squeeze<axes = [0]>(u)"
    unsqueeze = "Unsqueeze(c, zero)" if inputs else "Unsqueeze<axes = [0]>(c)"
    cut = "Slice(s, zero, one)" if opset >= 10 else "Slice<starts = [0], ends = [1]>(s)"
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[n, 3] x) => (float[n, 3] y)
        <float[3] c = {{1, 2, 3}}, int64[1] zero = {{0}}, int64[1] one = {{1}}> {{
            u = {unsqueeze} s = {squeeze} k = {cut} e = Exp(k) y = Mul(x, e)
        }}"""
    )
    optimized = optimize(model, PASS, {"x": np.ones((2, 3), np.float32)})
    assert op_types(optimized) == ["Mul"]


def test_half_and_double_are_folded() -> None:
    for name, dtype in (("float16", np.float16), ("double", np.float64)):
        model = parse(
            f"g ({name}[2] x) => ({name}[2] y) <{name}[2] c = {{1, 2}}> "
            "{ e = Sqrt(c) y = Mul(x, e) }"
        )
        assert op_types(optimize(model, PASS, {"x": np.ones(2, dtype)}, rtol=1e-3)) == ["Mul"]


# Graph outputs, bodies, names


def test_a_constant_output_becomes_one_constant_node() -> None:
    model = parse(
        """g (float[2] x) => (float[2] y, float[m] k) <float[2] c = {1, 2}> {
            e = Exp(c) k = Sqrt(e) y = Mul(x, k)
        }"""
    )
    optimized = optimize(model, PASS, x2())
    assert op_types(optimized) == ["Constant", "Mul"]
    untouched(to_proto(optimized), PASS)


def test_bodies_are_folded_with_constants_of_the_outer_graph() -> None:
    model = parse(
        """g (bool c, float[2] x) => (float[2] y) <float[2] k = {1, 2}> {
            o = Exp(k)
            y = If (c) <
                then_branch = t () => (float[2] t1) { a = Sqrt(o) b = Neg(a) t1 = Add(x, b) },
                else_branch = e () => (float[2] e1) { a = Abs(o) b = Exp(a) e1 = Mul(x, b) }
            >
        }"""
    )
    x = np.ones(2, np.float32)
    optimized = optimize(model, PASS, {"c": np.array(True), "x": x}, {"c": np.array(False), "x": x})
    assert op_types(optimized) == ["If", "Add", "Mul"]


def test_a_constant_branch_becomes_one_constant_node() -> None:
    model = parse(
        """g (bool c, float[2] x) => (float[2] y) <float[2] k = {1, 2}> {
            y = If (c) <
                then_branch = t () => (float[2] t1) { a = Exp(k) t1 = Neg(a) },
                else_branch = e () => (float[2] e1) { e1 = Neg(x) }
            >
        }"""
    )
    x = np.ones(2, np.float32)
    optimized = optimize(model, PASS, {"c": np.array(True), "x": x}, {"c": np.array(False), "x": x})
    assert op_types(optimized) == ["If", "Constant", "Neg"]


def test_loop_bodies_are_folded() -> None:
    model = parse(
        """g (int64 n, float[2] x) => (float[2] y) <bool t = {1}, float[2] k = {0.5, 2}> {
            y = Loop (n, t, x) <body = b (int64 i, bool go, float[2] a) => (bool on, float[2] r) {
                e = Exp(k) s = Sqrt(e) r = Mul(a, s) on = Identity(go)
            }>
        }"""
    )
    feed = {"n": np.array(3), "x": np.array([1, 2], np.float32)}
    assert op_types(optimize(model, PASS, feed)) == ["Loop", "Mul", "Identity"]


def test_folded_values_keep_their_names_and_metadata() -> None:
    model = parse(
        "g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { e = Exp(c) y = Mul(x, e) }"
    )
    source = from_proto(model)
    source.graph[0].outputs[0].metadata_props["origin"] = "here"
    PassManager(parse_pipeline(PASS)).run(source)
    assert source.graph.initializers["e"].metadata_props == {"origin": "here"}


def test_a_hit_and_a_miss_in_one_branch_are_kept_apart() -> None:
    """An index out of range, in a branch that is never taken, is no reason to stop."""
    model = parse(
        """g (bool c, float[2] x) => (float[2] y)
        <float[2] k = {1, 2}, int64[2] far = {7, 9}> {
            y = If (c) <
                then_branch = t () => (float[2] t1) { a = Exp(k) t1 = Mul(x, a) },
                else_branch = e () => (float[2] e1) {
                    a = Sqrt(k) b = Gather(a, far) d = Sqrt(b) f = Sqrt(k) g = Add(d, f)
                    e1 = Mul(x, g) }
            >
        }"""
    )
    optimized, outcomes = apply(model, PASS)
    assert op_types(optimized) == ["If", "Mul", "Gather", "Sqrt", "Add", "Mul"]
    assert "the runtime refuses to compute it" in reasons(outcomes[PASS])
    feed = {"c": np.array(True), "x": np.ones(2, np.float32)}
    np.testing.assert_array_equal(run(model, feed)[0], run(to_proto(optimized), feed)[0])


# Element types that numpy does not have


@pytest.mark.parametrize(
    "data_type",
    [
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.FLOAT8E4M3FN,
        onnx.TensorProto.FLOAT8E5M2,
        onnx.TensorProto.INT4,
        onnx.TensorProto.UINT4,
        onnx.TensorProto.FLOAT4E2M1,
    ],
)
def test_low_precision_is_moved_and_converted(data_type: int) -> None:
    tensor = onnx.helper.make_tensor("c", data_type, [2, 3], [1, 2, 3, 4, 6, 0])
    nodes = [
        onnx.helper.make_node("Transpose", ["c"], ["t"]),
        onnx.helper.make_node("Cast", ["t"], ["f"], to=1),
        onnx.helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", 1, [3, 2])], [info("y", 1, [3, 2])], [tensor]
    )
    opset = [onnx.helper.make_opsetid("", 23)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=11)
    optimized, _ = apply(model, PASS)
    assert op_types(optimized) == ["Add"]
    x = np.zeros((3, 2), np.float32)
    expected = np.array([[1, 4], [2, 6], [3, 0]], np.float32)
    np.testing.assert_array_equal(run(to_proto(optimized), {"x": x})[0], expected)


def test_a_transposed_int4_weight_stays_packed() -> None:
    values = np.arange(-8, 8).repeat(16).reshape(16, 16)
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, [16, 16], values.flatten())
    nodes = [
        onnx.helper.make_node("Transpose", ["w"], ["t"]),
        onnx.helper.make_node("DequantizeLinear", ["t", "s"], ["d"]),
        onnx.helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    info = onnx.helper.make_tensor_value_info
    scale = onnx.numpy_helper.from_array(np.array(0.5, np.float32), "s")
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", 1, [2, 16])], [info("y", 1, [2, 16])], [tensor, scale]
    )
    opset = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    optimized = optimize(model, PASS, {"x": np.eye(2, 16, dtype=np.float32)})
    assert op_types(optimized) == ["DequantizeLinear", "MatMul"]
    folded = optimized.graph.initializers["t"]
    assert folded.dtype == ir.DataType.INT4
    assert_not_larger(model, optimized)


def test_what_the_runtime_has_no_kernel_for_is_computed_by_reference() -> None:
    model = parse(
        "g (float[3] x) => (float[3] y) { b = Add(c, c) f = Cast<to = 1>(b) y = Mul(x, f) }",
        {"c": np.array([1, 2, 3], ml_dtypes.bfloat16)},
    )
    optimized, outcome = one_run(model)
    assert op_types(optimized) == ["Mul"]
    feed = {"x": np.ones(3, np.float32)}
    np.testing.assert_array_equal(run(to_proto(optimized), feed)[0], [2, 4, 6])
    assert outcome.refusals == []


def test_stops_when_told_to() -> None:
    model = parse(
        "g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> "
        "{ e = Exp(c) s = Sqrt(c) a = Mul(x, e) y = Mul(a, s) }"
    )
    passes = parse_pipeline(PASS)
    passes[0].max_rewrites = 1
    optimized = from_proto(model)
    PassManager(passes, rounds=1).run(optimized)
    assert op_types(optimized) == ["Sqrt", "Mul", "Mul"]
