"""fold-pruned-channels on quantized models: constants go into biases of integers, exactly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnxopt.passes.shared.channel_removal.integer_carriers import _added

from onnxopt.model import from_proto, to_proto
from tests.channels.quantizing import quantized
from tests.channels.random_nets import nets
from tests.differential import apply, op_types, parse, run
from tests.passes.pruning import PASS, normal, refused, removed

FEEDS = ({"x": normal(2, 3, 17, 20)}, {"x": normal(1, 3, 24, 18)})
SX, SW, SR, S2 = 0.05, np.array([0.02, 0.03, 0.01, 0.04], np.float32), 0.1, 0.015
DEAD = (1, 2)


def same(model: onnx.ModelProto, count: int | None = None) -> ir.Model:
    """Assert that the pass keeps each output to the last bit, and how many channels it removes."""
    optimized, _ = apply(model, PASS)
    after = to_proto(optimized)
    onnx.checker.check_model(after)
    for feed in FEEDS:
        for one, other in zip(run(model, feed), run(after, feed), strict=True):
            np.testing.assert_array_equal(other, one)
    if count is not None:
        assert removed(model) == count
    return optimized


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).integers(-100, 100, shape).astype(np.int8)


def hand_made(
    *,
    zero_point: int = 0,
    pads: str = "0, 0, 0, 0",
    bias: str = "b2",
    bias_scale: float = SR * S2,
    second: int = 50,
    activation: str = "Relu",
) -> onnx.ModelProto:
    """Two convolutions; two of the four channels between them have weights of their zero point.

    Args:
        zero_point: Of the first weights.
        pads: Of the second convolution.
        bias: The second bias, or nothing.
        bias_scale: Its scale.
        second: The largest integer of the second bias.
        activation: Between the two.
    """
    first = integers(4, 3, 3, 3)
    first[list(DEAD)] = zero_point
    constants: dict[str, Any] = {
        "w1": first,
        "sw1": SW,
        "zw1": np.full(4, zero_point, np.int8),
        "b1": np.array([10, 700, 2500, -30], np.int32),
        "sb1": (SX * SW).astype(np.float32),
        "zb1": np.zeros(4, np.int32),
        "w2": integers(5, 4, 3, 3),
        "sw2": np.float32(S2),
        "zw2": np.int8(0),
        "b2": np.array([second, -second, 3, 4, 5], np.int32),
        "sb2": np.float32(bias_scale),
        "zb2": np.int32(0),
        "sx": np.float32(SX),
        "zx": np.uint8(128),
        "sr": np.float32(SR),
        "zr": np.uint8(7),
    }
    biased = "b = DequantizeLinear(b2, sb2, zb2)" if bias else ""
    used = constants if bias else {k: v for k, v in constants.items() if k[1:] != "b2"}
    return parse(
        f"""g (float[n, 3, h, v] x) => (float[n, 5, p, q] y) {{
            xq = QuantizeLinear(x, sx, zx)  xd = DequantizeLinear(xq, sx, zx)
            wd = DequantizeLinear <axis = 0> (w1, sw1, zw1)
            bd = DequantizeLinear <axis = 0> (b1, sb1, zb1)
            r = Conv(xd, wd, bd)  a = {activation}(r)
            aq = QuantizeLinear(a, sr, zr)  ad = DequantizeLinear(aq, sr, zr)
            vd = DequantizeLinear(w2, sw2, zw2)  {biased}
            c = Conv <pads = [{pads}]> (ad, vd{", b" if bias else ""})
            cq = QuantizeLinear(c, sx, zx)  y = DequantizeLinear(cq, sx, zx)
        }}""",
        used,
    )


def bias_of(model: ir.Model) -> np.ndarray:
    """The integers of the second bias."""
    proto = to_proto(model)
    makers = {node.output[0]: node for node in proto.graph.node}
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    bias: np.ndarray = stored[makers[makers["c"].input[2]].input[0]]
    return bias


@pytest.mark.parametrize("zero_point", [0, -5])
@pytest.mark.parametrize("bias", ["b2", ""])
def test_constants_go_into_a_bias_of_integers(zero_point: int, bias: str) -> None:
    optimized = same(hand_made(zero_point=zero_point, bias=bias), 2)
    # b1 * SX * SW / SR: 700 * 0.05 * 0.03 = 1.05 is level 10 or 11 (and 7), 2500 * 0.0005 12 or 13.
    levels = np.rint(np.array([700, 2500]) * SX * SW[[1, 2]] / SR)
    added = integers(5, 4, 3, 3)[:, DEAD].astype(np.int64).sum(axis=(2, 3)) @ levels.astype(int)
    before = np.array([50, -50, 3, 4, 5]) if bias else np.zeros(5, int)
    np.testing.assert_array_equal(bias_of(optimized), before + added)
    assert op_types(optimized).count("DequantizeLinear") == 7
    shapes = {name: each.shape for name, each in optimized.graph.initializers.items()}
    assert shapes["w1"] == (2, 3, 3, 3)
    assert shapes["w2"] == (5, 2, 3, 3)


def test_overflow_of_the_bias() -> None:
    model = hand_made(second=2**31 - 10)
    assert "its constant is out of range" in refused(model)
    assert removed(model) == 0


def test_bias_in_other_steps() -> None:
    # The runtime takes the integers for multiples of the product of scales, whatever is stated.
    model = hand_made(bias_scale=SR * S2 * 1.5)
    assert removed(model) == 0
    assert "they carry what constant channels add where no bias can" in refused(model)


def test_padding() -> None:
    model = hand_made(pads="1, 1, 1, 1")
    assert removed(model) == 0
    assert "they carry what constant channels add where no bias can" in refused(model)
    # Constants that are 0 add nothing, at the border as within.
    zero = hand_made(pads="1, 1, 1, 1")
    for tensor in zero.graph.initializer:
        if tensor.name == "b1":
            numbers = np.array([10, -700, -1, -30], np.int32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, "b1"))
    same(zero, 2)


def padded(
    levels: Sequence[int], *, groups: int = 1, weight_type: Any = np.int8, zero_weight: int = 0
) -> onnx.ModelProto:
    """A padded convolution that reads constants with these levels, and as many live channels."""
    dead, count = len(levels), 2 * len(levels)
    first = integers(count, 3, 3, 3)
    first[::2] = 0
    bias = np.arange(count, dtype=np.int32) * 9
    bias[::2] = np.rint(np.array(levels) * SR / (SX * SW[0])).astype(np.int32)
    second = (integers(6, count // groups, 3, 3, seed=1) // 2).astype(np.int8)
    constants: dict[str, Any] = {
        "w1": first,
        "sw1": np.float32(SW[0]),
        "b1": bias,
        "sb1": np.float32(SX * SW[0]),
        "w2": (second.astype(np.int64) + zero_weight).astype(weight_type),
        "sw2": np.full(6, S2, np.float32),
        "zw2": np.full(6, zero_weight, weight_type),
        "sx": np.float32(SX),
        "zx": np.uint8(128),
        "sr": np.float32(SR),
        "zr": np.uint8(0),
        "sy": np.float32(0.5),
    }
    assert dead % groups == 0
    return parse(
        f"""g (float[n, 3, h, v] x) => (float[n, 6, p, q] y) {{
            xq = QuantizeLinear(x, sx, zx)  xd = DequantizeLinear(xq, sx, zx)
            wd = DequantizeLinear(w1, sw1)  bd = DequantizeLinear(b1, sb1)
            r = Conv(xd, wd, bd)  a = Relu(r)
            aq = QuantizeLinear(a, sr, zr)  ad = DequantizeLinear(aq, sr, zr)
            vd = DequantizeLinear <axis = 0> (w2, sw2, zw2)
            c = Conv <pads = [1, 1, 1, 1], group = {groups}> (ad, vd)
            cq = QuantizeLinear(c, sy, zx)  y = DequantizeLinear(cq, sy, zx)
        }}""",
        constants,
    )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_integers_carry_constants_under_padding(groups: int, seed: int) -> None:
    levels = np.random.default_rng(seed).integers(1, 60, 24).tolist()
    model = padded(levels, groups=groups)
    optimized = same(model)
    count = removed(model)
    assert (12 if groups == 1 else 8) <= count < 24
    weights = {name: each.const_value for name, each in optimized.graph.initializers.items()}
    after, before = weights["w2"], from_proto(model).graph.initializers["w2"].const_value
    assert after is not None
    assert before is not None
    assert after.shape[1] == (48 - count) // groups
    assert np.abs(after.numpy().astype(int)).max() <= np.abs(before.numpy().astype(int)).max()


def test_constants_that_nothing_can_make_up_for_stay() -> None:
    # With even levels only, carriers make even sums; what is left of the others must stay.
    same(padded([2, 4, 6, 8, 10, 12, 14, 7]))
    assert removed(padded([40])) == 0
    shifted = padded([5, 7, 9, 11, 3, 1, 20, 30], weight_type=np.uint8, zero_weight=120)
    assert removed(shifted) == 0
    assert "quantized weights cannot carry what constant channels add" in refused(shifted)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-120, 250).filter(bool), min_size=2, max_size=12),
    st.integers(0, 2**32 - 1),
    st.integers(0, 1),
)
def test_what_carriers_add_is_what_was_wanted(levels: list[int], seed: int, small: int) -> None:
    rng = np.random.default_rng(seed)
    carriers = np.array(levels, np.int64)
    weights = rng.integers(-60, 61, (len(levels), 3, 4))
    wanted = rng.integers(-40, 41, (3, 4)) * (1 if small else 50)
    found = _added(wanted, carriers, weights, 127)
    if found is not None:
        np.testing.assert_array_equal(np.tensordot(carriers, found, 1), wanted)
        assert np.abs(weights + found).max() <= 127
    elif small:
        # Two coprime levels that are not large can make any small number.
        pairs = itertools.combinations([each for each in map(abs, levels) if each <= 30], 2)
        assert all(math.gcd(*pair) > 1 for pair in pairs)


def test_scales_by_input_channel() -> None:
    model = hand_made()
    for tensor in model.graph.initializer:
        if tensor.name in ("sw2", "zw2"):
            array = np.broadcast_to(onnx.numpy_helper.to_array(tensor), 4)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.copy(), tensor.name))
    assert removed(model) == 0
    assert "the weights have scales along their inputs" in refused(model)


def test_activation_with_scales_by_channel() -> None:
    model = hand_made()
    for tensor in model.graph.initializer:
        if tensor.name in ("sr", "zr"):
            array = np.broadcast_to(onnx.numpy_helper.to_array(tensor), 4)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.copy(), tensor.name))
    assert removed(model) == 0
    assert "quantized with several scales" in refused(model)


def test_dynamic_quantization_is_left_alone() -> None:
    model = parse(
        """g (float[n, 3] x) => (float[n, 5] y) {
            r = Gemm(x, w1, b1)  q, s, z = DynamicQuantizeLinear(r)
            i = MatMulInteger(q, w2, z)  f = Cast <to = 1> (i)  y = Mul(f, s)
        }""",
        {
            "w1": normal(3, 4) * np.array([1, 0, 1, 0], np.float32),
            "b1": normal(4),
            "w2": integers(4, 5),
        },
    )
    assert removed(model) == 0
    assert any("DynamicQuantizeLinear" in reason for reason in refused(model))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nets(opsets=(13, 19)), st.booleans(), st.booleans())
def test_random_nets(model: onnx.ModelProto, per_channel: bool, signed: bool) -> None:
    same(quantized(model, FEEDS, per_channel=per_channel, signed=signed))


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nets(opsets=(13, 19)), st.booleans(), st.booleans())
def test_hundreds_of_random_nets(model: onnx.ModelProto, per_channel: bool, signed: bool) -> None:
    same(quantized(model, FEEDS, per_channel=per_channel, signed=signed))
