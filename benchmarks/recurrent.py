"""What 8 bits gain for LSTM layers, by size.

Usage::

    python -m benchmarks.recurrent

One layer of random weights, quantized as `quantize{scheme=dynamic}` does it for the goal of size
(with the goal of latency it leaves alone what is not faster), raced against the float layer on a
random sequence, one thread. Results go to ``benchmarks/results/recurrent.json``.
"""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import onnxopt
from benchmarks.results import Results
from onnxopt.accuracy import Budget, fidelity
from onnxopt.runtime.statistics import ratio
from onnxopt.runtime.trial import race, try_model
from onnxopt.runtime.worker import Worker

__all__ = ["main"]

#: Steps, batch, inputs, units, direction.
_SIZES = (
    (100, 1, 80, 32, "forward"),
    (50, 1, 64, 64, "forward"),
    (50, 1, 128, 128, "forward"),
    (50, 1, 256, 256, "bidirectional"),
    (50, 8, 256, 256, "forward"),
    (50, 1, 512, 512, "forward"),
    (20, 1, 1024, 1024, "forward"),
    (1, 1, 128, 128, "forward"),
)
_SECONDS = 2.0
_SAMPLES = 8


def main() -> None:
    """Measure all sizes."""
    results = Results("recurrent")
    for size in _SIZES:
        row = _measured(*size)
        results[" ".join(map(str, size))] = row
        print(
            f"{' '.join(map(str, size)):28} {row['speed']:.2f}x "
            f"({row['low']:.2f} to {row['high']:.2f}) {row['sqnr_db']:.1f} dB"
        )


def _measured(steps: int, batch: int, inputs: int, units: int, direction: str) -> dict[str, Any]:
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name, Worker() as worker:
        folder = pathlib.Path(name)
        before, after, samples = folder / "float.onnx", folder / "int8.onnx", folder / "samples"
        onnx.save(_layer(inputs, units, direction, random), before)
        samples.mkdir()
        feeds = [
            {"x": random.standard_normal((steps, batch, inputs)).astype(np.float32)}
            for _ in range(_SAMPLES)
        ]
        for number, feed in enumerate(feeds):
            np.savez(samples / f"{number}.npz", x=feed["x"])
        onnxopt.optimize(
            before,
            after,
            data=samples,
            passes="quantize{scheme=dynamic}",
            goal="size",
            budget=Budget(min_agreement=None),
        )
        trials = [try_model(worker, path, feeds) for path in (before, after)]
        speed = ratio(*race(worker, [before, after], feeds[0], seconds=_SECONDS))
        found = fidelity(trials[0].outputs, trials[1].outputs, ["y"])
    kernels = sorted({kernel.op_type for kernel in trials[1].kernels})
    return {
        "speed": speed.median,
        "low": speed.low,
        "high": speed.high,
        "sqnr_db": found.sqnr_db,
        "kernels": kernels,
    }


def _layer(inputs: int, units: int, direction: str, random: np.random.Generator) -> onnx.ModelProto:
    directions = 2 if direction == "bidirectional" else 1
    shapes = {
        "w": (directions, 4 * units, inputs),
        "r": (directions, 4 * units, units),
        "b": (directions, 8 * units),
    }
    constants = [
        numpy_helper.from_array(
            (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32), name
        )
        for name, shape in shapes.items()
    ]
    node = helper.make_node(
        "LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=units, direction=direction
    )
    float_type = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", float_type, ["steps", "batch", inputs])],
        [helper.make_tensor_value_info("y", float_type, ["steps", directions, "batch", units])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    main()
