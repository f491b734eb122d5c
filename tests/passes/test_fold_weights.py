"""`fold-constants` must not make the file larger, and weights are what counts."""

import pathlib
from typing import Literal

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.errors import OptionError
from onnxopt.model import load, save, to_proto
from onnxopt.pass_manager import PassManager, parse_pipeline
from tests.differential import apply, op_types, optimize, parse, untouched
from tests.passes.folding import (
    PASS,
    ROWS,
    WEIGHT,
    assert_not_larger,
    count_sessions,
    one_run,
    reasons,
)

# Weights


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


# Values that are large


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


# The limit


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
