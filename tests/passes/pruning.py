"""Small models with pruned channels, for the tests of fold-pruned-channels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.model import to_proto
from tests.differential import Feed, apply, optimize, parse

__all__ = ["PASS", "WIDTH_8", "between", "folded", "normal", "pruned", "refused", "removed"]

PASS = "infer-shapes,fold-pruned-channels{round-to=1}"
#: The channels that `between` prunes, and how many there are.
DEAD, WIDTH_8 = (1, 4, 5), 8


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def pruned(*shape: int, dead: tuple[int, ...] = DEAD, seed: int = 0) -> np.ndarray:
    """Weights whose rows ``dead`` are zero."""
    array = normal(*shape, seed=seed)
    array[list(dead)] = 0
    return array


def removed(model: onnx.ModelProto, pipeline: str = PASS) -> int:
    """How many channels the pass removes."""
    _, outcomes = apply(model, pipeline)
    return outcomes["fold-pruned-channels"].rewritten.total()


def refused(model: onnx.ModelProto, pipeline: str = PASS) -> list[str]:
    """The reasons that the pass gives."""
    _, outcomes = apply(model, pipeline)
    return [each.reason for each in outcomes["fold-pruned-channels"].refusals]


def folded(
    model: onnx.ModelProto, count: int, *feeds: Feed, pipeline: str = PASS, **tolerance: float
) -> ir.Model:
    """Assert that so many channels go, outputs stay, and a second run finds nothing."""
    optimized = optimize(model, pipeline, *feeds, **tolerance)
    assert removed(model, pipeline) == count
    assert removed(to_proto(optimized), pipeline) == 0
    return optimized


def between(
    text: str,
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 18,
    bias: float = 1.0,
    consumer: str = "y = Conv(s, w2, b2)",
    rank: int = 4,
) -> onnx.ModelProto:
    """A convolution with pruned channels, then nodes that make ``s`` of ``r``, then another.

    Args:
        text: The nodes.
        constants: Their initializers.
        opset: Version of the standard operators.
        bias: What is added to the bias, so that no constant is 0; NaN for biases of exactly 0.
        consumer: What reads ``s``.
        rank: Of the output.
    """
    first = np.zeros(WIDTH_8, np.float32) if np.isnan(bias) else normal(WIDTH_8) + bias
    sizes = ", ".join(f"o{axis}" for axis in range(rank))
    arrays = {"w1": pruned(WIDTH_8, 3, 3, 3), "b1": first, **(constants or {})}
    arrays.update(w2=normal(5, WIDTH_8, 1, 1), b2=normal(5))
    used = {name: array for name, array in arrays.items() if name in consumer + text + "w1 b1"}
    return parse(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[n, 3, h, v] x) => (float[{sizes}] y) {{
            r = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            {text}
            {consumer}
        }}""",
        used,
    )
