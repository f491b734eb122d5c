"""fold-pruned-channels on QLinearConv and QLinearMatMul: to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxopt.model import to_proto
from tests.channels.quantizing import quantized
from tests.channels.random_nets import PLAIN_BLOCKS, nets
from tests.differential import Feed, apply, parse, run
from tests.passes.pruning import PASS, normal, refused, removed

#: The quantizer leaves ConvTranspose in floats, sums of which round differently in other widths.
BLOCKS = tuple(each for each in PLAIN_BLOCKS if each != "transposed")
IMAGES = ({"x": normal(2, 3, 17, 20)}, {"x": normal(1, 3, 24, 18)})
DEAD = (1, 2, 5)


def same(model: onnx.ModelProto, *feeds: Feed) -> ir.Model:
    """Assert that each output stays to the last bit, and that nothing is left to do."""
    optimized, _ = apply(model, PASS)
    after = to_proto(optimized)
    onnx.checker.check_model(after)
    for feed in feeds:
        for one, other in zip(run(model, feed), run(after, feed), strict=True):
            np.testing.assert_array_equal(other, one)
    assert removed(after) == 0
    return optimized


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).integers(-100, 100, shape).astype(np.int8)


def convolutions(
    *,
    pads: str = "0, 0, 0, 0",
    biased: bool = True,
    between: str = "m = MaxPool <kernel_shape = [2, 2]> (c)",
    largest: int = 50,
    zero_weight: int = 0,
    **changed: Any,
) -> onnx.ModelProto:
    """Two QLinearConv; three of the eight channels between them have weights of zero."""
    first = integers(8, 3, 3, 3)
    first[list(DEAD)] = zero_weight
    arrays: dict[str, Any] = {
        "sx": np.float32(0.03),
        "zx": np.uint8(120),
        "w": first,
        "sw": np.linspace(0.01, 0.03, 8).astype(np.float32),
        "zw": np.full(8, zero_weight, np.int8),
        "sc": np.float32(0.09),
        "zc": np.uint8(5),
        "b": np.arange(8, dtype=np.int32) * 700 + 900,
        "v": integers(6, 8, 3, 3, seed=1) // 2,
        "sv": np.float32(0.015),
        "zv": np.int8(0),
        "sd": np.float32(1.5),
        "zd": np.uint8(128),
        "e": np.array([largest, -largest, 3, 4, 5, 6], np.int32),
        **changed,
    }
    bias = ", e" if biased else ""
    text = f"""g (float[n, 3, h, u] x) => (float[n, 6, p, q] y) {{
        a = QuantizeLinear(x, sx, zx)
        c = QLinearConv(a, sx, zx, w, sw, zw, sc, zc, b)
        {between}
        d = QLinearConv <pads = [{pads}]> (m, sc, zc, v, sv, zv, sd, zd{bias})
        y = DequantizeLinear(d, sd, zd)
    }}"""
    used = {name: each for name, each in arrays.items() if biased or name != "e"}
    return parse(text, used)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("zero_weight", [0, 7])
def test_constants_go_into_the_bias(biased: bool, zero_weight: int) -> None:
    model = convolutions(biased=biased, zero_weight=zero_weight)
    assert removed(model) == len(DEAD)
    optimized = same(model, *IMAGES)
    shapes = {name: each.shape for name, each in optimized.graph.initializers.items()}
    assert shapes["w"] == (5, 3, 3, 3)
    assert shapes["sw"] == shapes["zw"] == shapes["b"] == (5,)
    assert shapes["v"] == (6, 5, 3, 3)
    last = [node for node in optimized.graph if node.op_type == "QLinearConv"][-1]
    bias = last.inputs[8]
    assert bias is not None
    assert bias.const_value is not None
    # Outputs are constant times the weights: 900 * 700 * j steps of 0.03 * sw, over 0.09.
    given = np.array([50, -50, 3, 4, 5, 6]) if biased else np.zeros(6, int)
    scale = np.linspace(0.01, 0.03, 8)
    levels = [round((900 + 700 * each) * 0.03 * scale[each] / 0.09) for each in DEAD]
    weights = (integers(6, 8, 3, 3, seed=1) // 2).astype(int)[:, list(DEAD)].sum(axis=(2, 3))
    np.testing.assert_array_equal(bias.const_value.numpy(), given + weights @ levels)


def test_padding() -> None:
    # One of three may carry the others only where its level divides theirs.
    model = convolutions(pads="1, 1, 1, 1")
    same(model, *IMAGES)
    assert removed(model) < len(DEAD)
    # The zero point is what is padded with: constants of it add nothing.
    zero = convolutions(pads="1, 1, 1, 1", b=np.zeros(8, np.int32))
    assert removed(zero) == len(DEAD)
    same(zero, *IMAGES)


def test_overflow_of_the_bias() -> None:
    model = convolutions(largest=2**31 - 10)
    assert removed(model) == 0
    assert "its constant is out of range" in refused(model)


def test_depthwise() -> None:
    arrays: dict[str, Any] = {
        "f": integers(8, 1, 3, 3, seed=2),
        "sf": np.linspace(0.02, 0.01, 8).astype(np.float32),
        "zf": np.zeros(8, np.int8),
        "g": np.arange(8, dtype=np.int32) * 30,
    }
    text = "m = QLinearConv <group = 8{}> (c, sc, zc, f, sf, zf, sc, zc, g)"
    model = convolutions(between=text.format(""), **arrays)
    assert removed(model) == len(DEAD)
    optimized = same(model, *IMAGES)
    shapes = {name: each.shape for name, each in optimized.graph.initializers.items()}
    assert shapes["f"] == (5, 1, 3, 3)
    assert shapes["sf"] == shapes["g"] == (5,)
    # A border of constants is nothing that integers can carry.
    assert removed(convolutions(between=text.format(", pads = [1, 1, 1, 1]"), **arrays)) == 0


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"sd": np.full(6, 1.5, np.float32)}, "quantized with several scales"),
        ({"zv": None}, "the weights are not constant"),
    ],
)
def test_what_is_not_understood(changed: dict[str, Any], reason: str) -> None:
    model = convolutions(**{name: each for name, each in changed.items() if each is not None})
    if "zv" in changed:
        kept = [each for each in model.graph.initializer if each.name != "zv"]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        model.graph.input.append(onnx.helper.make_tensor_value_info("zv", 3, []))
    assert removed(model) == 0
    assert reason in refused(model)


def test_products() -> None:
    features, dead = 48, np.arange(48) % 3 > 0
    first = integers(24, features)
    first[:, dead] = 0
    arrays: dict[str, Any] = {
        "sx": np.float32(0.03),
        "zx": np.uint8(120),
        "w": first,
        "sw": np.linspace(0.01, 0.03, features).astype(np.float32),
        "zw": np.zeros(features, np.int8),
        "sc": np.float32(0.09),
        "zc": np.uint8(5),
        "v": integers(features, 8, seed=1) // 2,
        "sv": np.float32(0.015),
        "zv": np.int8(0),
        "sd": np.float32(0.7),
        "zd": np.uint8(128),
    }
    model = parse(
        """g (float[n, l, 24] x) => (float[n, l, 8] y) {
            a = QuantizeLinear(x, sx, zx)
            c = QLinearMatMul(a, sx, zx, w, sw, zw, sc, zc)
            d = QLinearMatMul(c, sc, zc, v, sv, zv, sd, zd)
            y = DequantizeLinear(d, sd, zd)
        }""",
        arrays,
    )
    feeds = ({"x": normal(2, 5, 24)}, {"x": normal(1, 1, 24)})
    # Products have no bias: of 0 nothing is left.
    assert removed(model) == dead.sum()
    optimized = same(model, *feeds)
    assert optimized.graph.initializers["w"].shape == (24, 16)
    assert optimized.graph.initializers["sw"].shape == (16,)
    assert optimized.graph.initializers["v"].shape == (16, 8)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nets(opsets=(13, 19), blocks=BLOCKS), st.booleans(), st.booleans())
def test_random_nets(model: onnx.ModelProto, per_channel: bool, signed: bool) -> None:
    made = quantized(model, IMAGES, per_channel=per_channel, signed=signed, operators=True)
    same(made, *IMAGES)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nets(opsets=(13, 19), blocks=BLOCKS), st.booleans(), st.booleans())
def test_hundreds_of_random_nets(model: onnx.ModelProto, per_channel: bool, signed: bool) -> None:
    made = quantized(model, IMAGES, per_channel=per_channel, signed=signed, operators=True)
    same(made, *IMAGES)
