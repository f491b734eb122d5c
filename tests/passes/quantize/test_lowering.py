"""Plans carried out: right at every level of the runtime, and fused where they should be."""

import pathlib

import numpy as np
import onnx
import pytest
from onnxopt.passes.quantize.plan import Mode

from tests.differential import parse, run
from tests.passes.quantize.lowered import decibels, kernels, lowered, run_at

RNG = np.random.default_rng(0)


def _array(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def _convolutions() -> onnx.ModelProto:
    return parse(
        """
        g (float[N, 3, H, W] x) => (float[N, 5] y) <float six = {6.0}, float zero = {0.0}> {
            a = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)
            c = Clip(a, zero, six)
            d = Conv<pads=[1, 1, 1, 1], group=8>(c, w2, b2)
            r = Relu(d)
            e = Conv(r, w3)
            s = Add(e, c)
            p = GlobalAveragePool(s)
            f = Flatten(p)
            y = Gemm<transB=1>(f, w4, b4)
        }
        """,
        {
            "w1": _array(8, 3, 3, 3, scale=0.3),
            "b1": _array(8),
            "w2": _array(8, 1, 3, 3, scale=0.3),
            "b2": _array(8),
            "w3": _array(8, 8, 1, 1, scale=0.3),
            "w4": _array(5, 8),
            "b4": _array(5),
        },
    )


@pytest.mark.parametrize("signed", [False, True])
def test_a_small_net_stays_true_at_every_level(signed: bool) -> None:
    model = _convolutions()
    feeds = [{"x": _array(2, 3, 16, 12)}, {"x": _array(1, 3, 9, 9)}]
    quantized, done = lowered(model, Mode.STATIC, *feeds, signed=signed)
    assert done == {"static": 4, "follower": 3}
    for feed in feeds:
        expected = run(model, feed)[0]
        for level in ("all", "disabled"):
            assert decibels(expected, run_at(quantized, feed, level)[0]) > 28


def test_every_node_of_a_small_net_is_one_8_bit_kernel(tmp_path: pathlib.Path) -> None:
    model = _convolutions()
    quantized, _ = lowered(model, Mode.STATIC, {"x": _array(2, 3, 16, 12)})
    found = kernels(quantized, tmp_path)
    assert found["QLinearConv"] == 3
    assert found["QLinearAdd"] == found["QGemm"] == found["QLinearGlobalAveragePool"] == 1
    assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1  # the ends
    assert not found.keys() & {"Conv", "FusedConv", "Clip", "Relu", "Add", "Gemm"}


def test_a_value_with_float_readers_is_read_behind_its_8_bit_numbers(
    tmp_path: pathlib.Path,
) -> None:
    model = parse(
        """
        g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] a, float[1, 4, 8, 8] t, float[1, 4, 8, 8] y) {
            a = Conv(x, w)
            t = Tanh(a)
            y = Conv(a, v)
        }
        """,
        {"w": _array(4, 4, 1, 1), "v": _array(4, 4, 1, 1)},
    )
    feed = {"x": _array(1, 4, 8, 8)}
    quantized, _ = lowered(model, Mode.STATIC, feed)
    assert [value.name for value in quantized.graph.output] == ["a", "t", "y"]
    assert kernels(quantized, tmp_path)["QLinearConv"] == 2
    for one, other in zip(run(model, feed), run(quantized, feed), strict=True):
        assert decibels(one, other) > 28


@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 7), (2, 3, 5, 7)])
@pytest.mark.parametrize(
    ("mode", "kernel"),
    [(Mode.STATIC_INPUT, "MatMulIntegerToFloat"), (Mode.DYNAMIC, "DynamicQuantizeMatMul")],
)
def test_matrix_products_give_floats(
    shape: tuple[int, ...], mode: Mode, kernel: str, tmp_path: pathlib.Path
) -> None:
    sizes = ", ".join(f"D{index}" for index in range(len(shape) - 1))
    model = parse(
        f"""
        g (float[{sizes}, 7] x) => (float[{sizes}, 6] y) {{
            a = MatMul(x, w)
            b = Add(bias, a)
            y = Tanh(b)
        }}
        """,
        {"w": _array(7, 6), "bias": _array(6)},
    )
    feed = {"x": _array(*shape)}
    quantized, done = lowered(model, mode, feed)
    assert done == {mode.value: 1}
    found = kernels(quantized, tmp_path)
    assert found[kernel] == 1
    assert "MatMul" not in found
    for level in ("all", "disabled"):
        assert decibels(run(model, feed)[0], run_at(quantized, feed, level)[0]) > 28


def test_products_of_one_input_quantize_it_once() -> None:
    model = parse(
        "g (float[N, 7] x) => (float[N, 6] y, float[N, 6] z) {"
        " y = MatMul(x, w) \n z = MatMul(x, v) }",
        {"w": _array(7, 6), "v": _array(7, 6)},
    )
    feed = {"x": _array(4, 7)}
    for mode, op_type in ((Mode.STATIC_INPUT, "QuantizeLinear"), (Mode.DYNAMIC, None)):
        quantized, _ = lowered(model, mode, feed)
        wanted = op_type or "DynamicQuantizeLinear"
        assert [node.op_type for node in quantized.graph.node].count(wanted) == 1
        for one, other in zip(run(model, feed), run(quantized, feed), strict=True):
            assert decibels(one, other) > 28


@pytest.mark.parametrize("mode", [Mode.STATIC, Mode.STATIC_INPUT, Mode.DYNAMIC])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_keeps_its_factors(mode: Mode, transposed: int) -> None:
    model = parse(
        "g (float[N, 7] x) => (float[N, 6] y) {"
        f" y = Gemm<alpha=0.5, beta=2.0, transB={transposed}>(x, w, b) }}",
        {"w": _array(6, 7) if transposed else _array(7, 6), "b": _array(6)},
    )
    feed = {"x": _array(9, 7)}
    quantized, _ = lowered(model, mode, feed)
    assert decibels(run(model, feed)[0], run(quantized, feed)[0]) > 28


def test_hard_swish_stays_in_8_bits(tmp_path: pathlib.Path) -> None:
    model = parse(
        """
        g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {
            a = Conv(x, w)
            h = HardSigmoid<alpha=0.16666667, beta=0.5>(a)
            b = Mul(a, h)
            c = Conv(b, v)
            d = HardSwish(c)
            y = Conv(d, w)
        }
        """,
        {"w": _array(4, 4, 1, 1, scale=3), "v": _array(4, 4, 1, 1)},
    )
    feed = {"x": _array(1, 4, 8, 8, scale=2)}
    quantized, _ = lowered(model, Mode.STATIC, feed)
    found = kernels(quantized, tmp_path)
    assert (found["QLinearConv"], found["QLinearAdd"], found["QLinearMul"]) == (3, 2, 2)
    assert "HardSigmoid" not in found
    for level in ("all", "disabled"):
        assert decibels(run(model, feed)[0], run_at(quantized, feed, level)[0]) > 28


def test_an_affine_step_costs_no_kernel(tmp_path: pathlib.Path) -> None:
    model = parse(
        """
        g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y)
        <float two = {2.0}, float[1] some = {0.7}> {
            a = Conv(x, w)
            r = Relu(a)
            b = Mul(r, two)
            s = Conv(b, v)
            c = Add(s, some)
            y = Conv<pads=[1, 1, 1, 1]>(c, u)
        }
        """,
        {"w": _array(4, 4, 1, 1), "v": _array(4, 4, 1, 1), "u": _array(4, 4, 3, 3)},
    )
    feed = {"x": _array(1, 4, 8, 8)}
    quantized, _ = lowered(model, Mode.STATIC, feed)
    found = kernels(quantized, tmp_path)
    assert found["QLinearConv"] == 3
    assert not found.keys() & {"Mul", "Add", "QLinearMul", "QLinearAdd"}
    for level in ("all", "disabled"):
        assert decibels(run(model, feed)[0], run_at(quantized, feed, level)[0]) > 26


def test_a_detection_head_keeps_boxes_and_scores_apart(tmp_path: pathlib.Path) -> None:
    """Boxes of hundreds of pixels and scores up to 1 would share a scale, were Concat in 8 bits."""
    model = parse(
        """
        g (float[1, 4, 8, 8] x) => (float[1, 8, 64] y) <int64[3] shape = {1, 8, 64}> {
            a = Conv(x, boxes)
            b = Conv(x, scores)
            s = Sigmoid(b)
            c = Concat<axis=1>(a, s)
            y = Reshape(c, shape)
        }
        """,
        {"boxes": _array(4, 4, 1, 1, scale=300), "scores": _array(4, 4, 1, 1)},
    )
    feed = {"x": _array(1, 4, 8, 8)}
    quantized, _ = lowered(model, Mode.STATIC, feed)
    assert kernels(quantized, tmp_path)["QLinearConcat"] == 0
    expected, actual = run(model, feed)[0], run(quantized, feed)[0]
    assert decibels(expected[:, 4:], actual[:, 4:]) > 28


def test_a_follower_that_nobody_wants_in_8_bits_stays_float() -> None:
    model = parse(
        "g (float[1, 4, 8, 8] x) => (float[1, 4, 1, 1] y) {"
        " a = Conv(x, w) \n p = GlobalAveragePool(a) \n y = Exp(p) }",
        {"w": _array(4, 4, 1, 1)},
    )
    quantized, done = lowered(model, Mode.STATIC, {"x": _array(1, 4, 8, 8)})
    assert done == {"static": 1}
    assert [node.op_type for node in quantized.graph.node][-2:] == ["GlobalAveragePool", "Exp"]


def test_a_clip_that_does_not_hold_zero_is_kept() -> None:
    model = parse(
        "g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) <float one = {1.0}, float two = {2.0}> {"
        " a = Conv(x, w) \n y = Clip(a, one, two) }",
        {"w": _array(4, 4, 1, 1)},
    )
    feed = {"x": _array(1, 4, 8, 8)}
    quantized, _ = lowered(model, Mode.STATIC, feed)
    result = run(quantized, feed)[0]
    assert "Clip" in [node.op_type for node in quantized.graph.node]
    assert (result.min(), result.max()) == (1, 2)


def test_shared_weights_serve_each_product() -> None:
    model = parse(
        "g (float[N, 4] x) => (float[N, 4] y) {"
        " a = MatMul(x, w) \n b = MatMul(a, w) \n y = Gemm<transB=1>(b, w) }",
        {"w": _array(4, 4)},
    )
    feed = {"x": _array(5, 4)}
    quantized, done = lowered(model, Mode.STATIC_INPUT, feed)
    assert done == {"static-input": 3}
    assert decibels(run(model, feed)[0], run(quantized, feed)[0]) > 26
    assert "w" not in {each.name for each in quantized.graph.initializer}


def test_a_product_reads_what_a_product_with_a_bias_gives() -> None:
    model = parse(
        """
        g (float[N, 16] x) => (float[N, 5] y) {
            m = MatMul(x, w1)
            a = Add(m, b1)
            n = MatMul(a, w2)
            y = Add(n, b2)
        }
        """,
        {"w1": _array(16, 12), "b1": _array(12), "w2": _array(12, 5), "b2": _array(5)},
    )
    feed = {"x": _array(64, 16)}
    quantized, _ = lowered(model, Mode.STATIC_INPUT, feed)
    (expected,), (actual,) = run(model, feed), run_at(quantized, feed)
    assert decibels(expected, actual) > 30
    names = {name for node in quantized.graph.node for name in node.output}
    assert "a" in names  # what stands for a value has its name


@pytest.mark.parametrize("first", [Mode.STATIC, Mode.STATIC_INPUT])
def test_a_matrix_product_without_a_bias_stays_without_one(
    first: Mode, tmp_path: pathlib.Path
) -> None:
    """Bias correction knows of a bias for every product; a node for it would undo the kernels."""
    model = parse(
        "g (float[N, S, 8] x) => (float[N, S, 4] y) { m = MatMul(x, w) y = MatMul(m, v) }",
        {"w": _array(8, 16), "v": _array(16, 4)},
    )
    feed = {"x": _array(2, 7, 8)}
    modes = {"m": first, "y": Mode.STATIC_INPUT}
    biases = {"m": _array(16), "y": _array(4)}
    quantized, _ = lowered(model, modes, feed, biases=biases)
    assert {node.op_type for node in quantized.graph.node} == {
        "MatMul",
        "QuantizeLinear",
        "DequantizeLinear",
    }
    assert decibels(run(model, feed)[0], run_at(quantized, feed)[0]) > 28
    found = kernels(quantized, tmp_path)
    assert found["MatMul"] == 0
    assert found["QLinearMatMul"] + found["MatMulIntegerToFloat"] == 2
