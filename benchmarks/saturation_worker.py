"""Runs models at the runtime's default level and without optimizations, on whatever processor.

Usage::

    python -m benchmarks.saturation_worker FOLDER

For each ``NAME.onnx`` beside ``NAME.npz`` (inputs, stacked) in the folder, ``NAME.default.npz`` and
``NAME.disabled.npz`` get the outputs, by number; ``machine.json`` what onnxopt takes the processor
for. This is a program of its own so that an emulator can run it, and imports little, since it is
slow there.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxopt.runtime.hardware import probe_target

__all__ = ["main", "run"]

Array = np.ndarray[Any, Any]

_LEVELS = {
    "default": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args(arguments).folder
    start = time.perf_counter()
    (folder / "machine.json").write_text(json.dumps({"target": probe_target().name}))
    for model in sorted(folder.glob("*.onnx")):
        stacked = dict(np.load(model.with_suffix(".npz")))
        for level in _LEVELS:
            outputs = {str(index): each for index, each in enumerate(run(model, stacked, level))}
            np.savez(model.with_name(f"{model.stem}.{level}.npz"), allow_pickle=False, **outputs)
        print(f"{model.stem}: {time.perf_counter() - start:.0f} s", flush=True)


def run(model: pathlib.Path, stacked: Mapping[str, Array], level: str) -> list[Array]:
    """The outputs for inputs, both stacked over samples, at a level of optimization."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = _LEVELS[level]
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    count = len(next(iter(stacked.values())))
    made = [
        session.run(None, {name: array[index] for name, array in stacked.items()})
        for index in range(count)
    ]
    return [np.stack(values) for values in zip(*made, strict=True)]


if __name__ == "__main__":
    main()
