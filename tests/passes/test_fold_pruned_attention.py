"""fold-pruned-channels on attention: heads, the depth of queries and keys, values, feed-forward."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.model import to_proto
from tests.differential import optimize, parse
from tests.passes.pruning import PASS, folded, normal, refused, removed

FEEDS = ({"x": normal(2, 7, 24)}, {"x": normal(1, 3, 24)})
HEADS, DEPTH = 4, 6

PROJECTIONS = """m = LayerNormalization <axis = -1> (x, g, c)
    q0 = MatMul(m, wq)  q1 = Add(q0, bq)  q2 = Reshape(q1, apart)
    k0 = MatMul(m, wk)  k1 = Add(k0, bk)  k2 = Reshape(k1, apart)
    v0 = MatMul(m, wv)  v1 = Add(v0, bv)  v2 = Reshape(v1, apart)
    q = Transpose <perm = [0, 2, 1, 3]> (q2)
    k = Transpose <perm = [0, 2, 3, 1]> (k2)
    v = Transpose <perm = [0, 2, 1, 3]> (v2)"""
ATTENTION = """s0 = MatMul(q, k)  s1 = Div(s0, root)  p = Softmax <axis = -1> (s1)
    o0 = MatMul(p, v)"""
REST = """o1 = Transpose <perm = [0, 2, 1, 3]> (o0)  o2 = Reshape(o1, whole)
    o3 = MatMul(o2, wo)  o4 = Add(o3, bo)  y = Add(o4, x)"""


def parameters(seed: int = 0) -> dict[str, np.ndarray]:
    width = HEADS * DEPTH
    found = {f"w{each}": normal(24, width, seed=seed + i) for i, each in enumerate("qkv")}
    found.update({f"b{each}": normal(width, seed=seed + i) for i, each in enumerate("qkvo", 9)})
    found["wo"] = normal(width, 24, seed=seed)
    found.update(g=normal(24) + 1, c=normal(24), root=np.array(DEPTH**0.5, np.float32))
    found["apart"] = np.array([0, -1, HEADS, DEPTH], np.int64)
    found["whole"] = np.array([0, -1, width], np.int64)
    return found


def block(
    constants: Mapping[str, np.ndarray], attention: str = ATTENTION, rest: str = REST
) -> onnx.ModelProto:
    text = f"{PROJECTIONS} {attention} {rest}"
    used = {name: array for name, array in constants.items() if name in text}
    return parse(f"g (float[n, l, 24] x) => (float[n, l, 24] y) {{ {text} }}", used)


def parted(array: np.ndarray) -> np.ndarray:
    """A view of weights or biases with heads and depth as the last two axes."""
    return array.reshape(*array.shape[:-1], HEADS, DEPTH)


def test_head_that_nothing_reads() -> None:
    constants = parameters()
    constants["wo"].reshape(HEADS, DEPTH, 24)[2] = 0
    # Six channels each of queries with keys and of values, and the head's weights.
    optimized = folded(block(constants), 6 + 6 + 1, *FEEDS)
    left = {
        each.name: onnx.numpy_helper.to_array(each)
        for each in to_proto(optimized).graph.initializer
    }
    assert left["wq"].shape == left["wk"].shape == left["wv"].shape == (24, 18)
    assert left["wo"].shape == (18, 24)
    assert left["apart"].tolist() == [0, -1, 3, 6]
    assert left["whole"].tolist() == [0, -1, 18]


def test_head_with_constant_values() -> None:
    # Averages of a constant are the constant, whatever the weights are.
    constants = parameters()
    parted(constants["wv"])[:, 1] = 0
    folded(block(constants), 6 + 6 + 1, *FEEDS)
    # If the weights need not add up to 1 it takes zeros.
    attention = ATTENTION.replace("Softmax <axis = -1> ", "Sigmoid")
    assert removed(block(constants, attention)) == 0
    parted(constants["bv"])[1] = 0
    folded(block(constants, attention), 6 + 6 + 1, *FEEDS)


@pytest.mark.parametrize("factor", ["q", "k"])
def test_depth_that_is_zero(factor: str) -> None:
    constants = parameters()
    for head, places in enumerate([(0, 3), (3, 0, 5), (3, 0), (0, 3, 1)]):
        parted(constants[f"w{factor}"])[:, head, list(places)] = 0
        parted(constants[f"b{factor}"])[head, list(places)] = 0
    # Each head must keep as many, at the same places.
    optimized = folded(block(constants), 2 * HEADS, *FEEDS)
    assert optimized.graph.initializers["wq"].shape == (24, 16)
    assert optimized.graph.initializers["wv"].shape == (24, 24)
    # A constant that is not 0 shifts the logits by what the other factor is.
    parted(constants[f"b{factor}"])[1, 0] = 1
    assert removed(block(constants)) == HEADS


def test_depth_of_values() -> None:
    constants = parameters()
    constants["wo"].reshape(HEADS, DEPTH, 24)[:, 4] = 0
    parted(constants["wv"])[:, :, 1] = 0
    folded(block(constants), 2 * HEADS, *FEEDS)


def test_mask_and_dead_positions() -> None:
    attention = """s0 = MatMul(q, k)  s1 = Div(s0, root)  n = ReduceMean <keepdims = 1> (x, last)
        n1 = Transpose <perm = [0, 2, 1]> (n)  n2 = Unsqueeze(n1, one)  s2 = Add(s1, n2)
        p = Softmax <axis = -1> (s2)  o0 = MatMul(p, v)"""
    constants = parameters()
    constants.update(last=np.array([-1], np.int64), one=np.array([1], np.int64))
    constants["wo"].reshape(HEADS, DEPTH, 24)[3] = 0
    folded(block(constants, attention), 6 + 6 + 1, *FEEDS)


def test_one_projection_for_all_three() -> None:
    text = """q0 = MatMul(x, w)  q1 = Add(q0, b)  r = Reshape(q1, apart)
        t = Transpose <perm = [2, 0, 3, 1, 4]> (r)
        q = Gather <axis = 0> (t, i0)  k0 = Gather <axis = 0> (t, i1)  v = Gather <axis = 0> (t, i2)
        k = Transpose <perm = [0, 1, 3, 2]> (k0)"""
    constants = parameters()
    joined = {
        "w": np.concatenate([constants[f"w{each}"] for each in "qkv"], 1),
        "b": np.concatenate([constants[f"b{each}"] for each in "qkv"]),
        "apart": np.array([0, -1, 3, HEADS, DEPTH], np.int64),
        **{f"i{number}": np.array(number, np.int64) for number in range(3)},
    }
    constants["wo"].reshape(HEADS, DEPTH, 24)[2] = 0
    constants.update(joined)
    source = f"{text} {ATTENTION} {REST}"
    used = {name: constants[name] for name in (*joined, "root", "whole", "wo", "bo")}
    model = parse(f"g (float[n, l, 24] x) => (float[n, l, 24] y) {{ {source} }}", used)
    # Three parts of one tensor: what goes is the same in each.
    folded(model, 6 + 6 + 1, *FEEDS)


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        ("s0 = MatMul(q, k)  p = Softmax <axis = 1> (s0)  o0 = MatMul(p, v)", "weighted by"),
        (
            "q3 = CumSum(q, i)  s0 = MatMul(q3, k)  p = Softmax(s0)  o0 = MatMul(p, v)",
            "weighted by",
        ),
        (
            "s0 = MatMul(q, k)  e = Einsum <equation = 'abij,abjk->abik'> (s0, v)  o0 = Exp(e)",
            "Ein",
        ),
    ],
)
def test_attention_that_is_not_followed(attention: str, reason: str) -> None:
    constants = parameters() | {"i": np.array(2, np.int64)}
    parted(constants["wv"])[:, 1] = 0
    constants["wo"].reshape(HEADS, DEPTH, 24)[2] = 0
    model = block(constants, attention.replace("'", '"'))
    assert removed(model) == 0
    optimize(model, PASS, *FEEDS)
    assert any(reason in each for each in refused(model))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.sampled_from("qkvo"), min_size=1, max_size=4))
def test_random_blocks(seed: int, pruned: list[str]) -> None:
    rng = np.random.default_rng(seed)
    constants = parameters(seed)
    dead = rng.random((HEADS, DEPTH)) < rng.choice([0.3, 0.8])
    dead |= (rng.random(HEADS) < 0.4)[:, None] | (rng.random(DEPTH) < 0.3)
    for each in pruned:
        if each == "o":
            constants["wo"].reshape(HEADS, DEPTH, 24)[dead] = 0
            continue
        parted(constants[f"w{each}"])[:, dead] = 0
        if rng.random() < 0.6:
            parted(constants[f"b{each}"])[dead] = 0
    optimize(block(constants), PASS, *FEEDS)
