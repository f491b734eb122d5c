import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.errors import OptionError, RuntimeCrashError, RuntimeRefusalError
from onnxopt.model import from_proto, load, save, to_proto
from onnxopt.pass_contract import Outcome
from onnxopt.pass_manager import PassManager, parse_pipeline
from onnxopt.runtime.worker import shared_worker
from tests.differential import apply, op_types, optimize, parse, run, untouched

PASS = "fold-constants"
WORKER = "onnxopt.passes._runtime_evaluation.shared_worker"
WEIGHT = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
ROWS = {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)}


def size(model: onnx.ModelProto) -> int:
    return int(to_proto(from_proto(model)).ByteSize())


def assert_not_larger(model: onnx.ModelProto, optimized: ir.Model, allowance: int = 0) -> None:
    assert to_proto(optimized).ByteSize() <= size(model) + allowance


def one_run(model: onnx.ModelProto, pipeline: str = PASS) -> tuple[ir.Model, Outcome]:
    """The result of a single round, with its outcome."""
    optimized = from_proto(model)
    reports = PassManager(parse_pipeline(pipeline), rounds=1).run(optimized)
    return optimized, reports[-1].outcome


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
    np.testing.assert_allclose(*map(last, (run(model, x2()), run(to_proto(optimized), x2()))))


def test_a_transposed_weight_replaces_the_weight() -> None:
    model = parse(
        "g (float[n, 64] x) => (float[n, 48] y) { t = Transpose<perm = [1, 0]>(w) "
        "y = MatMul(x, t) }",
        {"w": WEIGHT.T.copy()},
    )
    optimized = optimize(model, PASS, ROWS)
    assert op_types(optimized) == ["MatMul"]
    assert set(optimized.graph.initializers) == {"t"}
    assert_not_larger(model, optimized)


def test_a_large_transpose_takes_no_memory(tmp_path: pathlib.Path) -> None:
    model = parse(
        "g (float[n, 1024] x) => (float[n, 1024] y) { t = Transpose(w) y = MatMul(x, t) }",
        {"w": np.zeros((1024, 1024), np.float32)},
    )
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True)
    optimized = load(tmp_path / "model.onnx")
    stored = optimized.graph.initializers["w"].const_value
    assert stored is not None
    PassManager(parse_pipeline(PASS)).run(optimized)
    folded = optimized.graph.initializers["t"].const_value
    assert folded is not None
    assert np.shares_memory(folded.numpy(), stored.numpy())


@pytest.mark.parametrize("external", ["never", "always"])
def test_views_are_saved_as_they_look(
    tmp_path: pathlib.Path, external: Literal["never", "always"]
) -> None:
    weight = np.random.default_rng(0).standard_normal((600, 500)).astype(np.float32)
    model = parse(
        "g (float[n, 500] x) => (float[n, 600] y) { t = Transpose(w) y = MatMul(x, t) }",
        {"w": weight},
    )
    optimized, _ = apply(model, PASS)
    save(optimized, tmp_path / "model.onnx", external)
    stored = load(tmp_path / "model.onnx").graph.initializers["t"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), weight.T)


def test_slices_that_use_up_a_weight_are_folded_together() -> None:
    model = parse(
        """g (float[n, 64] x) => (float[n, 16] y)
        <int64[1] a = {0}, int64[1] b = {16}, int64[1] c = {32}, int64[1] d = {48},
         int64[1] axis = {1}> {
            q = Slice(w, a, b, axis) k = Slice(w, b, c, axis) v = Slice(w, c, d, axis)
            xq = MatMul(x, q) xk = MatMul(x, k) xv = MatMul(x, v)
            s = Add(xq, xk) y = Mul(s, xv)
        }""",
        {"w": WEIGHT},
    )
    optimized = optimize(model, "fold-constants{max-bytes=0}", ROWS)
    assert op_types(optimized) == ["MatMul", "MatMul", "MatMul", "Add", "Mul"]
    assert_not_larger(model, optimized)


def test_reordered_gates_are_folded_in_one_run() -> None:
    """Small parts of a weight must not be written where the whole can be."""
    model = parse(
        """g (float[n, 64] x) => (float[n, 48] y)
        <int64[1] a = {0}, int64[1] b = {4}, int64[1] c = {48}, int64[1] axis = {1}> {
            i = Slice(w, a, b, axis) o = Slice(w, b, c, axis) r = Concat<axis = 1>(o, i)
            u = Unsqueeze(r, a) v = Squeeze(u, a) y = MatMul(x, v)
        }""",
        {"w": WEIGHT},
    )
    optimized, _ = one_run(model)
    assert op_types(optimized) == ["MatMul"]
    assert_not_larger(model, optimized)
    optimize(model, PASS, ROWS)


def test_what_a_large_value_tells_opens_the_way_for_others() -> None:
    """The size of `r` is known only when `s`, which is made of something large, is written."""
    model = parse(
        """g (float[n] x) => (float[n] y) <float zero = {0}, float one = {1}> {
            e = Abs(w) s = ReduceMax<keepdims = 0>(e) r = Range(zero, s, one)
            m = ReduceMax<keepdims = 0>(r) y = Mul(x, m)
        }""",
        {"w": np.linspace(0, 5.5, 100_000, dtype=np.float32)},
    )
    optimized, _ = one_run(model)
    assert op_types(optimized) == ["Mul"]
    optimize(model, PASS, {"x": np.ones(3, np.float32)})


def test_weight_normalization_is_folded() -> None:
    model = parse(
        """g (float[n, 64] x) => (float[n, 48] y) <float gain = {3}> {
            sq = Mul(w, w) s = ReduceSum<keepdims = 1>(sq) r = Sqrt(s) u = Div(w, r)
            v = Mul(u, gain) y = MatMul(x, v)
        }""",
        {"w": np.tile(WEIGHT, (1, 1))},
    )
    optimized = optimize(model, PASS, ROWS)
    assert op_types(optimized) == ["MatMul"]
    assert_not_larger(model, optimized)


def test_large_values_are_computed_only_when_they_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = count_sessions(monkeypatch)
    text = """g (float[n, 256] x) => (float[n, 512] y) {{
        f = Cast<to = 1>(w) v = Mul(f, s) y = MatMul(x, v) }}"""
    weight = np.ones((256, 512), np.int8)
    model = parse(text.format(), {"w": weight, "s": np.full((1, 512), 0.5, np.float32)})
    untouched(model, PASS, "larger")
    assert not calls


def test_a_narrower_weight_is_folded_and_a_wider_one_is_not() -> None:
    text = "g (float16[n, 64] x) => (float16[n, 48] y) { c = Cast<to = 10>(w) y = MatMul(x, c) }"
    feed = {"x": ROWS["x"].astype(np.float16)}
    optimized = optimize(parse(text, {"w": WEIGHT}), PASS, feed)
    assert op_types(optimized) == ["MatMul"]
    wide = parse(
        "g (float[n, 64] x) => (float[n, 48] y) { c = Cast<to = 1>(w) y = MatMul(x, c) }",
        {"w": WEIGHT.astype(np.float16)},
    )
    untouched(wide, PASS, "larger")


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


# What is left alone


@pytest.mark.parametrize(
    ("line", "dtype"),
    [
        ("r = RandomNormalLike(c)", "float[2]"),
        ("r = RandomUniformLike(c)", "float[2]"),
        ("r = Bernoulli(c)", "float[2]"),
        ("r = Dropout(c, half, yes)", "float[2]"),
    ],
)
def test_random_results_are_not_frozen(line: str, dtype: str) -> None:
    model = parse(
        f"""g (float[2] x) => ({dtype} y)
        <float[2] c = {{0.5, 0.5}}, float half = {{0.5}}, bool yes = {{1}}> {{
            {line} y = Mul(x, r)
        }}"""
    )
    untouched(model, PASS, "differ from run to run")


def test_quantization_is_not_folded() -> None:
    model = parse(
        """g (float[n, 64] x) => (float[n, 48] y) <float s = {0.02}, int8 z = {0}> {
            q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = MatMul(x, d)
        }""",
        {"w": WEIGHT},
    )
    untouched(model, PASS, "quantization")


def test_dequantization_of_small_weights_is_not_folded() -> None:
    model = parse(
        """g (float[2] x) => (float[2] y) <int8[2] w = {3, 4}, float s = {0.02}, int8 z = {0}> {
            d = DequantizeLinear(w, s, z) e = Neg(d) y = Mul(x, e)
        }"""
    )
    untouched(model, PASS, "quantization")


def test_dynamic_quantization_is_not_folded() -> None:
    model = parse(
        """g (float[2] x) => (float[2] y) <float[2] w = {3, 4}> {
            q, s, z = DynamicQuantizeLinear(w) d = DequantizeLinear(q, s, z) y = Mul(x, d)
        }"""
    )
    untouched(model, PASS, "quantization")


def test_overridable_initializers_are_not_constant() -> None:
    model = parse(
        "g (float[2] x, float[2] c) => (float[2] y) { e = Exp(c) y = Mul(x, e) }",
        {"c": np.ones(2, np.float32)},
    )
    untouched(model, PASS)


@pytest.mark.parametrize(
    "line",
    [
        "b = ConstantOfShape<value = float[1] {1}>(shape)",
        "b = Expand(one, shape)",
        "b = Tile(one, shape)",
    ],
)
def test_what_makes_something_large_stays(line: str) -> None:
    model = parse(
        f"""g (float[2000, 2000] x) => (float[2000, 2000] y)
        <float[1, 1] one = {{1}}, int64[1] k = {{1000}}, int64[1] two = {{2}}> {{
            h = Mul(k, two) shape = Concat<axis = 0>(h, h) {line} y = Mul(x, b)
        }}"""
    )
    optimized, outcomes = apply(model, PASS)
    assert op_types(optimized) == [line.split("= ")[1].split("(")[0].split("<")[0], "Mul"]
    assert_not_larger(model, optimized)
    assert "writing the result would make the file larger" in reasons(outcomes[PASS])


def test_a_long_range_stays() -> None:
    model = parse(
        """g (int64[n] x) => (int64[n] y)
        <int64 a = {0}, int64 k = {3000}, int64 d = {1}> {
            b = Mul(k, k) r = Range(a, b, d) y = Add(x, r)
        }"""
    )
    assert op_types(apply(model, PASS)[0]) == ["Range", "Add"]


def test_a_transposed_weight_that_others_read_stays() -> None:
    model = parse(
        """g (float[n, 64] x) => (float[n, 64] y) {
            t = Transpose(w) a = MatMul(x, w) y = MatMul(a, t)
        }""",
        {"w": WEIGHT},
    )
    untouched(model, PASS, "larger")


def test_a_weight_that_two_transposes_read_stays() -> None:
    model = parse(
        """g (float[n, 48] x) => (float[n, 64] y) {
            t = Transpose(w) u = Transpose(w) a = MatMul(x, t) b = MatMul(x, u) y = Add(a, b)
        }""",
        {"w": WEIGHT},
    )
    untouched(model, PASS, "larger")


def test_a_weight_that_a_body_reads_stays() -> None:
    model = parse(
        """g (bool c, float[n, 48] x) => (float[n, 64] y) {
            t = Transpose(w) a = MatMul(x, t)
            y = If (c) <
                then_branch = p () => (float[n, 64] p1) { b = MatMul(a, w) p1 = MatMul(b, t) },
                else_branch = q () => (float[n, 64] q1) { q1 = Neg(a) }
            >
        }""",
        {"w": WEIGHT},
    )
    untouched(model, PASS, "larger")


def test_something_enormous_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_sessions(monkeypatch)
    model = parse(
        """g (float[n] x) => (float[n] y) <int64[1] k = {1000000}> {
            shape = Concat<axis = 0>(k, k) b = Expand(x1, shape) e = Exp(b)
            s = ReduceSum<keepdims = 0>(e) y = Mul(x, s)
        }""",
        {"x1": np.ones((1, 1), np.float32)},
    )
    optimized, outcomes = apply(model, PASS)
    assert op_types(optimized) == ["Expand", "Exp", "ReduceSum", "Mul"]
    assert "it is too large to be computed" in reasons(outcomes[PASS])
    assert not calls


def test_strings_and_sequences_stay() -> None:
    strings = onnx.helper.make_tensor("s", onnx.TensorProto.STRING, [2], [b"1.5", b"2"])
    model = parse("g (float[2] x) => (float[2] y) { f = Cast<to = 1>(s) y = Mul(x, f) }")
    model.graph.initializer.append(strings)
    untouched(model, PASS, "strings")
    to_text = parse("g () => (string[2] y) <float[2] c = {1, 2}> { y = Cast<to = 8>(c) }")
    untouched(to_text, PASS)
    sequence = parse(
        """g (float[2] x) => (float[2] y) <float[2] c = {1, 2}, int64 i = {0}> {
            s = SequenceConstruct(c, c) a = SequenceAt(s, i) y = Mul(x, a)
        }"""
    )
    untouched(sequence, PASS, "sequences")


def test_other_domains_stay() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "other" : 1]>
        g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { e = other.Exp(c) y = Mul(x, e) }"""
    )
    untouched(model, PASS, "standard domain")


def test_control_flow_stays() -> None:
    model = parse(
        """g (float[2] x) => (float[2] y) <bool c = {1}> {
            i = If (c) <
                then_branch = t () => (float[2] t1) <float[2] t1 = {1, 2}> { },
                else_branch = e () => (float[2] e1) <float[2] e1 = {3, 4}> { }
            >
            y = Mul(x, i)
        }"""
    )
    untouched(model, PASS, "control flow")


def test_functions_stay_as_they_are() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 18]>
        f (a) => (b) { c = Constant<value_float = 2.0>() d = Exp(c) b = Mul(a, d) }"""
    )
    optimized, outcomes = apply(model, PASS)
    assert not outcomes[PASS].modified
    (function,) = optimized.functions.values()
    assert [node.op_type for node in function] == ["Constant", "Exp", "Mul"]


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


# Crashes, hangs, refusals


class FragileWorker:
    """Passes requests on, except that one operator makes it fail."""

    def __init__(self, op_type: str, error: Exception) -> None:
        self.op_type, self.error, self.requests = op_type, error, 0

    def evaluate(self, model: bytes, feed: Mapping[str, Any], seconds: float) -> list[Any]:
        self.requests += 1
        nodes = onnx.ModelProto.FromString(model).graph.node
        if any(node.op_type == self.op_type for node in nodes):
            raise self.error
        return shared_worker().evaluate(model, feed, seconds)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeCrashError("died"), "crashes or hangs"),
        (RuntimeRefusalError("no"), "refuses to compute"),
    ],
)
def test_a_node_that_fails_is_found_and_left(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    worker = FragileWorker("Erf", error)
    monkeypatch.setattr(WORKER, lambda: worker)
    lines = [f"a{i} = {op}(c) x{i + 1} = Mul(x{i}, a{i})" for i, op in enumerate(FIVE_OPS)]
    model = parse(
        f"g (float[2] x0) => (float[2] x5) <float[2] c = {{1, 2}}> {{ {' '.join(lines)} }}"
    )
    optimized, outcome = one_run(model)
    assert sorted(op_types(optimized)) == ["Erf", "Mul", "Mul", "Mul", "Mul", "Mul"]
    assert any(reason in each for each in reasons(outcome))
    assert worker.requests < 10
    feed = {"x0": np.ones(2, np.float32)}
    np.testing.assert_allclose(run(model, feed)[0], run(to_proto(optimized), feed)[0])


FIVE_OPS = ("Exp", "Sqrt", "Erf", "Tanh", "Sigmoid")


def test_too_many_hangs_end_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = FragileWorker("Sqrt", RuntimeCrashError("hung"))
    monkeypatch.setattr(WORKER, lambda: worker)
    monkeypatch.setattr("onnxopt.passes._runtime_evaluation._MOST_LOST_SECONDS", 0.0)
    lines = [f"a{i} = Sqrt(c) x{i + 1} = Mul(x{i}, a{i})" for i in range(8)]
    model = parse(
        f"g (float[2] x0) => (float[2] x8) <float[2] c = {{1, 2}}> {{ {' '.join(lines)} }}"
    )
    optimized = from_proto(model)
    reports = PassManager(parse_pipeline(f"{PASS},{PASS}"), rounds=3).run(optimized)
    assert op_types(optimized) == op_types(from_proto(model))
    assert all("crashes or hangs" in reason for reason in reasons(reports[-1].outcome))
    assert worker.requests == 1


def test_a_group_whose_evaluation_fails_does_not_make_the_file_larger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Writing one of two halves is only worth it when the other half is written too."""
    monkeypatch.setattr(WORKER, lambda: FragileWorker("Erf", RuntimeRefusalError("-")))
    weight = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)
    model = parse(
        """g (float[n, 256] x) => (float[n, 256] y) <int64[2] halves = {256, 256}> {
            a, b = Split<axis = 1>(w, halves) c = Exp(a) d = Erf(b)
            p = MatMul(x, c) q = MatMul(x, d) y = Add(p, q)
        }""",
        {"w": weight},
    )
    optimized, outcomes = apply(model, "fold-constants{max-bytes=0}")
    assert "Erf" in op_types(optimized)
    assert_not_larger(model, optimized)
    assert "the runtime refuses to compute it" in reasons(outcomes[PASS])


# Options and limits


def test_max_bytes_is_what_a_value_may_add() -> None:
    model = parse(
        """g (float[n] x) => (float[n] y) <float[1] c = {1}, int64[1] k = {100}> {
            e = Expand(c, k) y = Mul(x, e)
        }"""
    )
    assert op_types(apply(model, "fold-constants{max-bytes=0}")[0]) == ["Expand", "Mul"]
    optimized, _ = apply(model, "fold-constants{max-bytes=400}")
    assert op_types(optimized) == ["Mul"]
    assert_not_larger(model, optimized, allowance=400)


def test_max_bytes_is_not_negative() -> None:
    with pytest.raises(OptionError, match="max-bytes must not be negative"):
        parse_pipeline("fold-constants{max-bytes=-1}")


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


@st.composite
def constant_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Graphs of weights and operators on them, of which some results are read."""
    values: list[tuple[str, tuple[int, int]]] = []
    weights = {}
    for index in range(draw(st.integers(1, 3))):
        side = draw(st.sampled_from([(1, 1), (8, 8), (8, 1), (1, 8)]))
        name = f"w{index}"
        weights[name] = np.full(side, index + 1, np.float32)
        values.append((name, side))
    lines = []
    for index in range(draw(st.integers(1, 7))):
        name, side = draw(st.sampled_from(values))
        kind = draw(st.sampled_from(["Transpose", "Relu", "Add", "ReduceMax"]))
        if kind == "Add":
            other, wide = draw(st.sampled_from(values))
            lines.append(f"v{index} = Add({name}, {other})")
            side = (max(side[0], wide[0]), max(side[1], wide[1]))
        elif kind == "ReduceMax":
            lines.append(f"v{index} = ReduceMax<keepdims = 1>({name})")
            side = (1, 1)
        else:
            lines.append(f"v{index} = {kind}({name})")
            side = side[::-1] if kind == "Transpose" else side
        values.append((f"v{index}", side))
    read = draw(st.lists(st.sampled_from(values), min_size=1, max_size=4))
    sums = [f"y{i + 1} = Add(y{i}, {name})" for i, (name, _) in enumerate(read)]
    text = f"g (float[8, 8] y0) => (float[8, 8] y{len(read)}) {{ {' '.join(lines + sums)} }}"
    return parse(text, weights)


@given(constant_graphs())
@settings(max_examples=40, deadline=None)
def test_the_file_never_grows(model: onnx.ModelProto) -> None:
    """Whatever is shared or read twice: no byte is added, and one run does it all."""
    feed = {"y0": np.ones((8, 8), np.float32)}
    pipeline = "fold-constants{max-bytes=0}"
    optimized = optimize(model, pipeline, feed)
    assert_not_larger(model, optimized)
    optimized, _ = one_run(model, pipeline)
    untouched(to_proto(optimized), pipeline)


# Helpers


def x2() -> dict[str, np.ndarray]:
    return {"x": np.array([1, 2], np.float32)}


def last(outputs: Sequence[Any]) -> Any:
    return outputs[-1]


def reasons(outcome: Outcome) -> set[str]:
    return {refusal.reason for refusal in outcome.refusals}


def count_sessions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of nodes of each session that is opened from now on."""
    sessions: list[int] = []

    class Counting:
        def evaluate(self, model: bytes, feed: Mapping[str, Any], seconds: float) -> list[Any]:
            sessions.append(len(onnx.ModelProto.FromString(model).graph.node))
            return shared_worker().evaluate(model, feed, seconds)

    monkeypatch.setattr(WORKER, Counting)
    return sessions
