"""fold-pruned-channels where channels are hard to follow: outputs kept at any opset."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from onnxopt.model import to_proto
from tests.channels.hostile_nets import hostile_nets
from tests.differential import optimize, parse
from tests.passes.pruning import PASS, between, folded, normal, pruned, refused, removed

FEEDS = ({"x": normal(2, 3, 17, 20)}, {"x": normal(1, 3, 24, 18)})


def holds(model: onnx.ModelProto) -> None:
    """Outputs are kept, and a second run finds nothing left to do."""
    optimized = optimize(model, PASS, *FEEDS)
    assert removed(to_proto(optimized)) == 0


def test_gemm_with_a_bias_of_two_axes() -> None:
    first, bias = normal(6, 3), normal(1, 6)
    first[[1, 4]] = 0
    model = parse(
        """g (float[n, 3] x) => (float[n, m] y) {
            a = Gemm <transB = 1> (x, w1, b1)  r = Sigmoid(a)  y = Gemm(r, w2, b2)
        }""",
        {"w1": first, "b1": bias, "w2": normal(6, 4), "b2": normal(1, 4)},
    )
    optimized = folded(model, 2, {"x": normal(5, 3)}, {"x": normal(1, 3)})
    assert optimized.graph.initializers["b2"].shape == (1, 4)


def test_split_with_a_part_of_nothing() -> None:
    text = "i, j, k = Split <axis = -3> (r, sizes)  s = Concat <axis = 1> (k, i, j)"
    model = between(text, {"sizes": np.array([5, 0, 3], np.int64)})
    folded(model, 3, *FEEDS)


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_pooling_windows_in_the_padding(operator: str) -> None:
    # With steps of 2 between its elements a window can miss an image of one element.
    attributes = 'kernel_shape = [2, 2], dilations = [2, 2], auto_pad = "SAME_UPPER"'
    model = between(f"s = {operator} <{attributes}> (r)", opset=19)
    assert removed(model) == 0
    attributes = attributes.replace("dilations = [2, 2]", "dilations = [1, 1]")
    folded(between(f"s = {operator} <{attributes}> (r)", opset=19), 3, *FEEDS)


def test_sizes_that_are_copied_from_other_channels() -> None:
    # The 8 that is copied counts places; where it goes are channels, too.
    model = parse(
        """g (float[1, 3, 8] x) => (float[4, 8, 5] y) {
            r = Conv(x, w1, b1)  t = Transpose <perm = [0, 2, 1]> (r)
            b = Concat <axis = 0> (four, rest)  c = Reshape(t, b)  y = MatMul(c, w2)
        }""",
        {
            "w1": pruned(8, 3, 1),
            "b1": normal(8),
            "four": np.array([4], np.int64),
            "rest": np.array([0, 2], np.int64),
            "w2": normal(2, 5),
        },
    )
    optimize(model, PASS, {"x": normal(1, 3, 8)})
    assert removed(model) == 0
    assert "a size is copied from another axis" in refused(model)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hostile_nets())
def test_random_nets(model: onnx.ModelProto) -> None:
    holds(model)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hostile_nets())
def test_hundreds_of_random_nets(model: onnx.ModelProto) -> None:
    holds(model)
