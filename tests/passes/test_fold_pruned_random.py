"""fold-pruned-channels on random nets: outputs kept at two sizes and two batches, at any opset."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxopt.model import to_proto
from tests.channels.random_nets import nets
from tests.differential import optimize
from tests.passes.pruning import normal, removed

FEEDS = ({"x": normal(2, 3, 17, 20)}, {"x": normal(1, 3, 24, 18)})


def holds(model: onnx.ModelProto, option: str) -> None:
    """Outputs are kept, and a second run finds nothing left to do."""
    pipeline = f"infer-shapes,fold-pruned-channels{option}"
    optimized = optimize(model, pipeline, *FEEDS)
    assert removed(to_proto(optimized), pipeline) == 0


@settings(max_examples=60, deadline=None)
@given(nets(), st.sampled_from(["", "{round-to=1}"]))
def test_random_nets(model: onnx.ModelProto, option: str) -> None:
    holds(model, option)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nets(), st.sampled_from(["", "{round-to=1}"]))
def test_hundreds_of_random_nets(model: onnx.ModelProto, option: str) -> None:
    holds(model, option)
