"""Random models through the whole pipeline; see `random_graphs` for what is in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.model import Interface, from_proto, to_proto
from onnxopt.pass_manager import PassManager, parse_pipeline
from tests.conformance.random_graphs import random_model
from tests.differential import run

_SEEDS = 25
_MANY_SEEDS = 600
_SIZES = (1, 2, 3)
#: Share of the largest magnitude that two outputs may differ by. What comes near 1 on its way may
#: cancel, so a magnitude counts as 1 at least.
_TOLERANCE = 5e-5


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_random_models_stay_right(opset: int) -> None:
    checked = sum(_stays_right(random_model(seed, opset=opset)) for seed in range(_SEEDS))
    assert checked > 0.9 * _SEEDS


@pytest.mark.slow
@pytest.mark.parametrize("opset", [14, 15, 16, 17, 18, 19, 20, 22, 23])
def test_many_random_models_stay_right(opset: int) -> None:
    seeds = range(1000 * opset, 1000 * opset + _MANY_SEEDS)
    checked = sum(_stays_right(random_model(seed, length=20, opset=opset)) for seed in seeds)
    assert checked > 0.9 * _MANY_SEEDS


def test_a_random_model_is_the_same_each_time() -> None:
    assert random_model(3) == random_model(3)
    assert random_model(3) != random_model(4)


def _stays_right(proto: onnx.ModelProto) -> bool:
    """Assert that a model is optimized rightly; False when the runtime refuses the original."""
    feeds = [_feed(proto, size) for size in _SIZES]
    try:
        expected = [run(proto, feed) for feed in feeds]
    except Exception:  # its own optimizations make some models invalid
        return False
    model = from_proto(proto)
    interface = Interface.of(model)
    PassManager(parse_pipeline("exact")).run(model)
    optimized = to_proto(model)
    onnx.checker.check_model(optimized, full_check=True)
    assert [name for name, _ in Interface.of(model).outputs] == [n for n, _ in interface.outputs]
    for feed, outputs in zip(feeds, expected, strict=True):
        if all(np.isfinite(output).all() for output in outputs):
            for one, other in zip(outputs, run(optimized, feed), strict=True):
                assert (one.shape, one.dtype) == (other.shape, other.dtype)
                largest = max(1.0, float(np.abs(one).max(initial=0)))
                np.testing.assert_allclose(other, one, rtol=1e-3, atol=_TOLERANCE * largest)
    return True


def _feed(proto: onnx.ModelProto, size: int) -> dict[str, Any]:
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    shape = [size if dim.dim_param else dim.dim_value for dim in dims]
    return {"x": np.random.default_rng(size).standard_normal(shape).astype(np.float32)}
