"""fold-pruned-channels on attention and feed-forward in QDQ form: to the last bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.model import to_proto
from tests.channels.quantizing import quantized
from tests.differential import apply, parse, run
from tests.passes.pruning import PASS, normal, refused, removed
from tests.passes.test_fold_pruned_attention import DEPTH, FEEDS, HEADS, block, parameters, parted

FEATURES = 96


def same(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Assert that each output stays to the last bit; the shapes of what is stored."""
    optimized, _ = apply(model, PASS)
    after = to_proto(optimized)
    onnx.checker.check_model(after)
    for feed in FEEDS:
        for one, other in zip(run(model, feed), run(after, feed), strict=True):
            np.testing.assert_array_equal(other, one)
    assert removed(after) == 0
    return {each.name: tuple(each.dims) for each in after.graph.initializer}


def feed_forward(constants: dict[str, np.ndarray], activation: str) -> onnx.ModelProto:
    """Two products with biases, and an activation between."""
    return parse(
        f"""g (float[n, l, 24] x) => (float[n, l, 24] y) {{
            a0 = MatMul(x, wa)  a1 = Add(ba, a0)  {activation}
            c0 = MatMul(a, wc)  c1 = Add(c0, bc)  y = Add(c1, x)
        }}""",
        {name: each for name, each in constants.items() if name in activation + "wa ba wc bc"},
    )


def features(dead: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    constants: dict[str, np.ndarray] = {
        "wa": normal(24, FEATURES, seed=seed),
        "ba": normal(FEATURES, seed=seed),
        "wc": normal(FEATURES, 24, seed=seed),
        "bc": normal(24, seed=seed),
        "root": np.array(2**0.5, np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
    }
    constants["wa"][:, dead] = 0
    return constants


GELU = "e0 = Div(a1, root)  e1 = Erf(e0)  e2 = Add(e1, one)  e3 = Mul(a1, e2)  a = Mul(e3, half)"


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_head_that_nothing_reads(per_channel: bool, signed: bool) -> None:
    constants = parameters()
    constants["wo"].reshape(HEADS, DEPTH, 24)[2] = 0
    shapes = same(quantized(block(constants), FEEDS, per_channel=per_channel, signed=signed))
    assert shapes["wq_quantized"] == shapes["wk_quantized"] == shapes["wv_quantized"] == (24, 18)
    assert shapes["bq_quantized"] == (18,)
    assert shapes["wo_quantized"] == (18, 24)


def test_depth_that_is_zero() -> None:
    constants = parameters()
    parted(constants["wq"])[:, :, [0, 3]] = 0
    parted(constants["bq"])[:, [0, 3]] = 0
    shapes = same(quantized(block(constants), FEEDS))
    assert shapes["wq_quantized"] == shapes["wk_quantized"] == (24, 16)
    assert shapes["wv_quantized"] == (24, 24)


def test_averages_of_a_constant_are_none_in_integers() -> None:
    # Rows of a Softmax that is rounded to integers do not add up to 1.
    constants = parameters()
    parted(constants["wv"])[:, 1] = 0
    assert removed(quantized(block(constants), FEEDS)) == 0
    parted(constants["bv"])[1] = 0
    assert removed(quantized(block(constants), FEEDS)) == 6 + 6 + 1


@pytest.mark.parametrize("activation", ["a = Relu(a1)", GELU])
@pytest.mark.parametrize("signed", [True, False])
def test_features(activation: str, signed: bool) -> None:
    dead = np.arange(FEATURES) % 3 > 0
    model = quantized(feed_forward(features(dead), activation), FEEDS, signed=signed)
    width = same(model)["wc_quantized"][0]
    # Integers of a product have no bias: a few of the constants carry the others.
    assert FEATURES // 3 <= width < FEATURES // 3 + 16
    assert same(model)["wa_quantized"] == (24, width)


def test_constants_that_others_read_too() -> None:
    constants = features(np.arange(FEATURES) % 3 > 0)
    model = quantized(feed_forward(constants, "a = Relu(a1)"), FEEDS)
    name = next(
        node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] == "ba_quantized"
    )
    model.graph.node.append(onnx.helper.make_node("Identity", [name], ["z"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, [FEATURES]))
    assert removed(model) == 0
    assert "the constants are shared" in refused(model)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 9999), st.booleans(), st.booleans(), st.sampled_from(["a = Relu(a1)", GELU]))
def test_random(seed: int, per_channel: bool, signed: bool, activation: str) -> None:
    rng = np.random.default_rng(seed)
    constants = parameters(seed)
    for name in "qkv":
        dead = rng.random((HEADS, DEPTH)) < 0.4
        parted(constants[f"w{name}"])[:, dead] = 0
        parted(constants[f"b{name}"])[dead] *= np.float32(rng.random() < 0.3)
    constants["wo"][rng.random(HEADS * DEPTH) < 0.4] = 0
    dead = rng.random(FEATURES) < 0.6
    for model in (block(constants), feed_forward(features(dead, seed), activation)):
        same(quantized(model, FEEDS, per_channel=per_channel, signed=signed))
