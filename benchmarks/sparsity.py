"""Accuracy at equal sparsity, without retraining: the tables of docs/sparsity.md.

Usage::

    python -m benchmarks.sparsity DATA           # what is missing in the results, and the tables
    python -m benchmarks.sparsity DATA --fresh   # all over again
    python -m benchmarks.sparsity --page         # only the tables

DATA is the folder of ``photos64.npz`` and ``movie_sentences.npz``; see
`benchmarks.quantization_data`. All tools see the same samples and are judged on others against the
float model. Tools differ in which weights they make sparse, so the zeros that came out are in the
results, too.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxopt.passes.sparsify.layers import find_layers

from benchmarks import sparsity_page
from benchmarks.peers import peer_python
from benchmarks.quantization_data import feeds
from benchmarks.results import Results
from benchmarks.zoo import model_path
from onnxopt.accuracy import Budget, fidelity
from onnxopt.model import load, save
from onnxopt.pass_manager import PassManager, make_pass, parse_pipeline
from onnxopt.runtime.worker import Worker
from onnxopt.samples import Samples
from onnxopt.workbench import Workbench

__all__ = ["main"]

_MODELS = ("lite0-folded", "minilm")
_LEVELS = ("0.3", "0.5", "0.6", "0.7", "2:4")
_CALIBRATION, _JUDGED = range(24), range(32, 64)
#: A tool that takes longer for one model is stopped, so that the whole stays under two hours.
_LIMIT_SECONDS = 300
_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

#: Options of our pass by what a row is called.
_OURS = {
    "onnxopt magnitude": "criterion=magnitude,allocation=uniform",
    "onnxopt wanda": "criterion=wanda,allocation=uniform",
    "onnxopt obs": "criterion=obs,allocation=uniform",
    "onnxopt obs, LAMP": "criterion=obs,allocation=lamp",
    "onnxopt obs, measured": "criterion=obs,allocation=measured",
}
#: Functions of onnxsim; it has no command for them.
_PEERS = {
    "onnxsim magnitude": "apply_magnitude_pruning",
    "onnxsim Wanda": "apply_wanda_pruning",
    "onnxsim SparseGPT": "apply_sparsegpt_pruning",
}
_PEER_SCRIPT = """
import sys, numpy, onnx, onnxsim
source, target, samples, function, level = sys.argv[1:]
options = {}
if function != "apply_magnitude_pruning":
    import pathlib
    files = sorted(pathlib.Path(samples).glob("*.npz"))
    options["calibration_data"] = [dict(numpy.load(file)) for file in files]
if ":" in level:
    options["n"], options["m"] = map(int, level.split(":"))
else:
    options["sparsity"] = float(level)
onnx.save(getattr(onnxsim, function)(onnx.load(source), **options), target)
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("data", nargs="?", type=pathlib.Path, help="folder of the samples")
    parser.add_argument("--models", nargs="+", default=_MODELS, choices=_MODELS)
    parser.add_argument("--levels", nargs="+", default=_LEVELS, metavar="LEVEL")
    parser.add_argument("--tools", nargs="+", default=(*_OURS, *_PEERS), metavar="TOOL")
    parser.add_argument("--fresh", action="store_true", help="measure chosen rows again")
    parser.add_argument("--page", action="store_true", help="write the tables and measure nothing")
    chosen = parser.parse_args(arguments)
    results = Results("sparsity")
    if not chosen.page:
        if chosen.data is None:
            parser.error("name the folder of the samples")
        for name in chosen.models:
            _measure_model(name, chosen, results)
    sparsity_page.write(results)


def _measure_model(name: str, chosen: argparse.Namespace, results: Results) -> None:
    missing = [
        (tool, level)
        for tool in chosen.tools
        for level in chosen.levels
        if chosen.fresh or f"{name}/{tool}/{level}" not in results
        if ":" not in level or ("LAMP" not in tool and "measured" not in tool)
    ]
    if not missing:
        return
    with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder, Worker() as worker:
        case = _Case(name, pathlib.Path(folder), chosen.data, worker)
        for tool, level in missing:
            row = case.measure(tool, level)
            results[f"{name}/{tool}/{level}"] = row
            print(f"{name}/{tool}/{level}: {row}", flush=True)


class _Case:
    """A model with its samples."""

    def __init__(self, name: str, folder: pathlib.Path, data: pathlib.Path, worker: Worker) -> None:
        self._folder, self._worker = folder, worker
        calibration = list(feeds(name, data, _CALIBRATION))
        self._judged = list(feeds(name, data, _JUDGED))
        self._samples = folder / "samples"
        self._samples.mkdir()
        for index, feed in enumerate(calibration):
            np.savez(self._samples / f"{index:03}.npz", **feed)
        # All tools start from the same simplified model.
        self._source = folder / "source.onnx"
        model = load(model_path(name))
        PassManager(parse_pipeline("exact")).run(model)
        save(model, self._source)
        self._names = [value.name or "" for value in model.graph.outputs]
        self._expected = self._run(self._source)
        self._bench = Workbench(
            self._source,
            Samples(lambda: calibration),
            Samples(lambda: self._judged),
            True,
            Budget(),
            worker,
        )

    def measure(self, tool: str, level: str) -> dict[str, Any]:
        """Make the model sparse and say what is left of its accuracy."""
        target = self._folder / "target.onnx"
        target.unlink(missing_ok=True)
        start = time.perf_counter()
        if tool in _OURS:
            self._ours(_OURS[tool], level, target)
        else:
            command = [peer_python(), "-c", _PEER_SCRIPT, str(self._source), str(target)]
            command += [str(self._samples), _PEERS[tool], level]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, timeout=_LIMIT_SECONDS
                )
            except subprocess.TimeoutExpired:
                return {"failed": f"stopped after {_LIMIT_SECONDS} s"}
            if done.returncode:
                return {"failed": done.stderr.strip().splitlines()[-1][:300]}
        seconds = time.perf_counter() - start
        found = fidelity(self._expected, self._run(target), self._names)
        agreement = found.agreement
        return {
            "seconds": seconds,
            "zeros": _zeros(target),
            "sqnr_db": found.sqnr_db,
            "cosine": found.cosine,
            "agreement": None if agreement is None else agreement.fraction,
        }

    def _ours(self, options: str, level: str, target: pathlib.Path) -> None:
        model = load(self._source)
        wanted = f"pattern={level}" if ":" in level else f"ratio={_ratio(model, float(level))}"
        pipeline = parse_pipeline(f"sparsify{{{options},{wanted}}}")
        PassManager(pipeline, workbench=self._bench).run(model)
        save(model, target)

    def _run(self, path: pathlib.Path) -> Sequence[Sequence[Any]]:
        info = self._worker.open(path)
        try:
            return [self._worker.run(info.session, feed) for feed in self._judged]
        finally:
            self._worker.close(info.session)


def _ratio(model: ir.Model, level: float) -> float:
    """The ratio of what our pass prunes with which so many of all weights are zero."""
    options = make_pass("sparsify").options
    layers, _ = find_layers(model, _WEIGHTS, 0)
    pruned = [
        layer.size
        for layer in layers
        if layer.size >= options.min_elements and layer.layout.columns >= options.min_inputs
    ]
    total: int = sum(layer.size for layer in layers)
    return level * total / float(sum(pruned))


def _zeros(path: pathlib.Path) -> float:
    """Share of zeros among all weights that are multiplied by."""
    layers, _ = find_layers(load(path), _WEIGHTS, 0)
    zeros: int = sum(int(np.count_nonzero(layer.matrix() == 0)) for layer in layers)
    elements: int = sum(layer.size for layer in layers)
    return zeros / elements


if __name__ == "__main__":
    main()
