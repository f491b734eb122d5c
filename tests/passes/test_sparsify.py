from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.errors import OptionError
from onnxopt.model import to_proto
from onnxopt.pass_contract import Outcome
from onnxopt.pass_manager import make_pass, parse_pipeline
from tests.differential import apply, parse, run

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sparsify(proto: onnx.ModelProto, options: str = "") -> tuple[ir.Model, Outcome]:
    """The model made sparse, checked to load and to differ in nothing but weights."""
    after, outcomes = apply(proto, f"sparsify{{min-inputs=0,{options}}}")
    result = to_proto(after)
    onnx.checker.check_model(result)
    assert [n.op_type for n in result.graph.node] == [n.op_type for n in proto.graph.node]
    assert result.ByteSize() <= proto.ByteSize()
    outcome = outcomes["sparsify"]
    assert outcome.modified == bool(outcome.rewritten)
    return after, outcome


def weight(model: ir.Model, name: str = "w") -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy())


def reasons(outcome: Outcome) -> dict[str, str]:
    return {each.node: each.reason for each in outcome.refusals}


def matmul(w: Array) -> onnx.ModelProto:
    rows, columns = w.shape
    return parse(
        f"g (float[n, {rows}] x) => (float[n, {columns}] y) {{ y = MatMul(x, w) }}", {"w": w}
    )


CONV = """g (float[n, 8, h, w_] x) => (float[n, 16, p, q] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w, b) y = Relu(a)
}"""


def conv() -> onnx.ModelProto:
    return parse(CONV, {"w": normal(16, 8, 3, 3), "b": normal(16)})


def test_smallest_weights_go_and_the_others_stay() -> None:
    w = normal(32, 24)
    model, outcome = sparsify(matmul(w), "ratio=0.75")
    after = weight(model)
    assert np.count_nonzero(after) == w.size // 4
    kept = after != 0
    np.testing.assert_array_equal(after[kept], w[kept])
    assert np.abs(w[kept]).min() > np.abs(w[~kept]).max()
    assert outcome.rewritten == {"MatMul": 1}
    (told,) = outcome.findings.layers
    assert (told.name, told.operator, told.zeros) == ("y", "MatMul", 0.75)
    error = np.linalg.norm(after - w) / np.linalg.norm(w)
    assert told.sqnr_db == pytest.approx(-20 * np.log10(error), rel=1e-5)


def test_biases_and_normalizations_stay() -> None:
    text = """g (float[n, 64] x) => (float[n, 64] y) {
        a = Gemm <transB = 1> (x, w, b) c = LayerNormalization(a, s, t) d = Mul(c, k)
        y = Add(d, b)
    }"""
    arrays = {"w": normal(64, 64), "b": normal(64), "s": normal(64), "t": normal(64)}
    arrays["k"] = normal(64, 64)[:1]
    model, outcome = sparsify(parse(text, arrays), "min-elements=0")
    assert outcome.rewritten == {"Gemm": 1}
    for name in "bstk":
        np.testing.assert_array_equal(weight(model, name), arrays[name])


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:2", "3:8"])
def test_n_of_m_along_the_inputs_of_each_output(pattern: str) -> None:
    n, m = map(int, pattern.split(":"))
    matrix = weight(sparsify(matmul(normal(32, 24)), f"pattern={pattern}")[0]).T
    kernel = weight(sparsify(conv(), f"pattern={pattern}")[0])
    for rows in (matrix, kernel.transpose(0, 2, 3, 1).reshape(-1, 8)):
        counts = np.count_nonzero(rows.reshape(rows.shape[0], -1, m), axis=-1)
        assert np.all(counts == n)


def test_n_of_m_keeps_the_largest() -> None:
    w = np.array([[1, -4, 2, 3], [0.5, 0.25, -9, 8]], np.float32).T.repeat(16, 1)
    model, _ = sparsify(matmul(w), "pattern=2:4,min-elements=0")
    expected = np.array([[0, -4, 0, 3], [0, 0, -9, 8]], np.float32).T.repeat(16, 1)
    np.testing.assert_array_equal(weight(model), expected)


def test_inputs_that_are_no_multiple_stay_dense() -> None:
    model, outcome = sparsify(matmul(normal(30, 24)), "pattern=2:4")
    assert np.count_nonzero(weight(model)) == 30 * 24
    assert reasons(outcome) == {"w": "its inputs are no multiple of 4"}


@pytest.mark.parametrize(
    ("pattern", "rows", "columns"), [("4x1", 4, 1), ("1x8", 1, 8), ("3x5", 3, 5)]
)
def test_blocks_go_as_a_whole(pattern: str, rows: int, columns: int) -> None:
    matrix = weight(sparsify(matmul(normal(40, 24)), f"pattern={pattern}")[0]).T
    kernel = weight(sparsify(conv(), f"pattern={pattern}")[0])
    views = [matrix, *kernel.transpose(2, 3, 0, 1).reshape(9, 16, 8)]
    zeros = sum(np.count_nonzero(view == 0) for view in views)
    assert zeros / sum(view.size for view in views) == pytest.approx(0.5, abs=0.02)
    for view in views:
        for top in range(0, view.shape[0], rows):
            for left in range(0, view.shape[1], columns):
                block = view[top : top + rows, left : left + columns]
                assert np.all(block == 0) or np.all(block != 0)


def test_layouts_of_all_operators() -> None:
    """N:M runs along the inputs, whatever the operator's layout."""
    text = """g (float[n, 8, 6, 6] x) => (float[n, 6, q] y) <int64[3] s = {0, 16, 36}> {
        a = Conv <group = 2, pads = [1, 1, 1, 1]> (x, c)
        b = ConvTranspose <group = 2, pads = [1, 1, 1, 1]> (a, t)
        d = Reshape(b, s) e = MatMul(l, d) f = MatMul(e, r) y = Identity(f)
    }"""
    arrays = {
        "c": normal(8, 4, 3, 3),
        "t": normal(8, 8, 3, 3),
        "l": normal(6, 16),
        "r": normal(36, 40),
    }
    proto = parse(text, arrays)
    model, outcome = sparsify(proto, "pattern=2:4,min-elements=0")
    assert outcome.rewritten.total() == len(arrays)
    views = [
        weight(model, "c").transpose(0, 2, 3, 1),
        weight(model, "t").reshape(2, 4, 8, 3, 3).transpose(0, 2, 3, 4, 1),
        weight(model, "l"),
        weight(model, "r").T,
    ]
    for view in views:
        assert np.all(np.count_nonzero(view.reshape(-1, 4), axis=1) == 2)
    run(to_proto(model), {"x": normal(2, 8, 6, 6)})


def test_recurrent_weights_and_embeddings_when_asked() -> None:
    text = """g (int64[s, b] i) => (float[s, 1, b, 16] y) {
        x = Gather(table, i) y, h, c = LSTM <hidden_size = 16> (x, w, r)
    }"""
    arrays = {"table": normal(50, 24), "w": normal(1, 64, 24), "r": normal(1, 64, 16)}
    proto = parse(text, arrays)
    model, outcome = sparsify(proto)
    assert not outcome.modified
    model, outcome = sparsify(proto, "operators=LSTM|Gather")
    for name, array in arrays.items():
        assert np.count_nonzero(weight(model, name)) == array.size // 2


# Quantized weights

QDQ = """g (float[n, 64] x) => (float[n, 32] y) {
    v = DequantizeLinear <axis = 1> (w, s, z) y = MatMul(x, v)
}"""


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16])
def test_quantized_weights_get_their_zero_point(dtype: Any) -> None:
    info = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    w = rng.integers(info.min, info.max, (64, 32), endpoint=True).astype(dtype)
    zeros = rng.integers(info.min // 2, info.max // 2, 32).astype(dtype)
    scales = rng.uniform(0.01, 0.1, 32).astype(np.float32)
    text = '<ir_version: 10, opset_import: ["" : 21]>\n' + QDQ
    model, outcome = sparsify(parse(text, {"w": w, "s": scales, "z": zeros}), "ratio=0.75")
    after = weight(model)
    assert after.dtype == dtype
    changed = after != w
    np.testing.assert_array_equal(after[changed], np.broadcast_to(zeros, w.shape)[changed])
    assert np.mean(after == zeros) == 0.75
    real = np.abs((w.astype(np.int64) - zeros) * scales)
    assert real[after != zeros].min() >= real[changed].max()
    assert outcome.findings.layers[0].zeros == 0.75


def test_blocked_and_scalar_scales() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[n, 64] x) => (float[n, 32] y) {
        v = DequantizeLinear <axis = 0, block_size = 16> (w, s) y = MatMul(x, v)
    }"""
    w = np.random.default_rng(0).integers(-128, 127, (64, 32)).astype(np.int8)
    scales = np.repeat(np.array([1.0, 0.001, 1.0, 0.001], np.float32).reshape(4, 1), 32, 1)
    after = weight(sparsify(parse(text, {"w": w, "s": scales}), "ratio=0.5")[0])
    assert np.count_nonzero(after[16:32]) + np.count_nonzero(after[48:]) < 20
    text = text.replace(", block_size = 16", "")
    after = weight(sparsify(parse(text, {"w": w, "s": np.array(0.5, np.float32)}), "ratio=0.5")[0])
    assert np.count_nonzero(after) == w.size // 2


def test_quantized_weights_that_are_read_otherwise_stay() -> None:
    w = np.random.default_rng(0).integers(-128, 127, (64, 32)).astype(np.int8)
    text = """g (float[n, 64] x, float s) => (float[n, 32] y) {
        v = DequantizeLinear(w, s) y = MatMul(x, v)
    }"""
    _, outcome = sparsify(parse(text, {"w": w}))
    assert reasons(outcome) == {"w": "its scale or zero point is not constant"}
    text = """g (float[n, 64] x) => (float[n, 32] y, int8[64, 32] u) <float s = {0.1}> {
        v = DequantizeLinear(w, s) y = MatMul(x, v) u = Abs(w)
    }"""
    _, outcome = sparsify(parse(text, {"w": w}))
    assert reasons(outcome) == {"w": "its stored numbers are read as they are"}


# What is left alone

W = {"w": normal(64, 64)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w) b = Add(w, w) "
            "c = MatMul(a, b) y = Relu(c) }",
            "something else reads it, too",
        ),
        (
            "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w) "
            "y = Gemm <transB = 1> (a, w) }",
            "its readers see it in different ways",
        ),
        (
            "g (float[n, 64] x, float[64, 64] w) => (float[n, 64] y) { y = MatMul(x, w) }",
            "it can be fed by the caller",
        ),
        (
            "g (float[n, 64] x) => (float[n, 64] y, float[64, 64] w) { y = MatMul(x, w) }",
            "it is a graph output",
        ),
    ],
)
def test_weights_in_other_roles_stay(text: str, reason: str) -> None:
    model, outcome = sparsify(parse(text, W))
    assert reasons(outcome) == {"w": reason}
    np.testing.assert_array_equal(weight(model), W["w"])


def test_small_ones_integers_and_numbers_that_are_not_finite_stay() -> None:
    _, outcome = sparsify(matmul(normal(8, 8)))
    assert reasons(outcome) == {"w": "it is small"}
    w = normal(64, 64)
    w[3, 4] = np.inf
    _, outcome = sparsify(matmul(w))
    assert reasons(outcome) == {"w": "it has numbers that are not finite"}
    text = "g (int32[n, 64] x) => (int32[n, 64] y) { y = MatMul(x, w) }"
    _, outcome = sparsify(parse(text, {"w": np.ones((64, 64), np.int32)}))
    assert reasons(outcome) == {"w": "its type is not a float"}


def test_depthwise_convolutions_stay() -> None:
    text = "g (float[n, 64, h, w_] x) => (float[n, 64, p, q] y) { y = Conv <group = 64> (x, w) }"
    _, outcome = sparsify(parse(text, {"w": normal(64, 1, 3, 3)}), "min-inputs=32")
    assert reasons(outcome) == {"w": "its outputs have few inputs each"}


def test_no_layer_is_emptied() -> None:
    text = "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, p) y = MatMul(a, q) }"
    arrays = {"p": normal(64, 64) / 1000, "q": normal(64, 64)}
    for options in ("allocation=global,ratio=0.5", "ratio=0.99,max-ratio=0.9999"):
        model, _ = sparsify(parse(text, arrays), options)
        assert np.count_nonzero(weight(model, "p")) > 0
    after = weight(sparsify(matmul(normal(4, 4)), "ratio=0.99,min-elements=0")[0])
    assert np.count_nonzero(after) == 1


# How a ratio is spread

TWO = "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, p) y = MatMul(a, q) }"
ARRAYS = {"p": normal(64, 512).reshape(64, 512), "q": normal(512, 64, seed=1) / 2}


def two() -> onnx.ModelProto:
    return parse(TWO, ARRAYS)


def sparsities(model: ir.Model) -> dict[str, float]:
    return {name: float(np.mean(weight(model, name) == 0)) for name in model.graph.initializers}


@pytest.mark.parametrize("allocation", ["uniform", "global", "lamp", "erk"])
@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_the_whole_ratio_is_met(allocation: str, ratio: float) -> None:
    model, _ = sparsify(two(), f"allocation={allocation},ratio={ratio}")
    zeros = sum(np.count_nonzero(weight(model, name) == 0) for name in "pq")
    assert zeros / (2 * 64 * 512) == pytest.approx(ratio, abs=0.002)


def test_a_global_threshold_is_one_threshold() -> None:
    model, _ = sparsify(two(), "allocation=global")
    kept = min(np.abs(array[array != 0]).min() for array in (weight(model, n) for n in "pq"))
    gone = max(np.abs(ARRAYS[name][weight(model, name) == 0]).max() for name in "pq")
    assert gone <= kept
    assert sparsities(model)["q"] > 0.6 > 0.4 > sparsities(model)["p"]


def test_lamp_does_not_care_for_scale_and_erk_spares_the_small() -> None:
    found = sparsities(sparsify(two(), "allocation=lamp")[0])
    assert found["p"] == pytest.approx(found["q"], abs=0.02)
    arrays = {"p": normal(64, 64), "q": normal(64, 1024)}
    proto = parse(TWO.replace("64] y", "1024] y"), arrays)
    found = sparsities(sparsify(proto, "allocation=erk,ratio=0.8")[0])
    assert found["p"] < 0.8 < found["q"]
    # (64 + 64) / 64^2 against (64 + 1024) / (64 * 1024): densities are in that proportion.
    expected = (128 / 4096) / (1088 / 65536)
    assert (1 - found["p"]) / (1 - found["q"]) == pytest.approx(expected, rel=0.02)


def test_a_table_goes_before_the_rest() -> None:
    model, outcome = sparsify(two(), "layers=q*:0.9|x:0.1,ratio=0.2")
    found = sparsities(model)
    assert found["q"] == pytest.approx(0.9, abs=1e-3)
    assert found["p"] == pytest.approx(0.2, abs=1e-3)
    model, outcome = sparsify(two(), "layers=q:0")
    assert sparsities(model)["q"] == 0
    assert reasons(outcome) == {"q": "its ratio is 0"}


def test_running_twice_changes_nothing_more() -> None:
    once, _ = sparsify(conv())
    twice, outcome = sparsify(to_proto(once))
    assert not outcome.modified
    assert reasons(outcome) == {"w": "it is as sparse already"}
    np.testing.assert_array_equal(weight(once), weight(twice))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types(dtype: Any) -> None:
    w = normal(64, 64).astype(dtype)
    kind = {np.float16: "float16", np.float64: "double"}[dtype]
    text = f"g ({kind}[n, 64] x) => ({kind}[n, 64] y) {{ y = MatMul(x, w) }}"
    after = weight(sparsify(parse(text, {"w": w}))[0])
    assert after.dtype == dtype
    assert np.all((after == 0) | (after == w))


def test_bodies_of_control_flow() -> None:
    text = """g (bool c, float[n, 64] x) => (float[n, 64] y) {
        y = If (c) <
            then_branch = t () => (float[n, 64] a) { a = MatMul(x, w) },
            else_branch = e () => (float[n, 64] b) { b = MatMul(x, q) }>
    }"""
    proto = parse(text, W)
    inner = onnx.numpy_helper.from_array(normal(64, 64, seed=3), "q")
    proto.graph.node[0].attribute[1].g.initializer.append(inner)
    _, outcome = sparsify(proto)
    assert outcome.rewritten == {"MatMul": 2}
    assert [each.name for each in outcome.findings.layers] == ["a", "b"]


def test_at_most_so_many() -> None:
    from onnxopt.model import from_proto

    pass_ = make_pass("sparsify")
    pass_.max_rewrites = 1
    assert pass_.run(from_proto(two())).rewritten.total() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        "ratio=1",
        "ratio=-0.1",
        "pattern=4:2",
        "pattern=0:4",
        "pattern=banded",
        "pattern=0x4",
        "layers=q",
        "layers=q:2",
        "operators=Softmax",
        "min-elements=-1",
        "min-inputs=-1",
        "max-ratio=1.5",
        "allocation=fair",
    ],
)
def test_wrong_options(wrong: str) -> None:
    with pytest.raises(OptionError):
        parse_pipeline(f"sparsify{{{wrong}}}")
