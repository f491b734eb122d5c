"""Exact simplification: our tool and its peers on the same models, in one run.

For each model and tool: the cost of the whole process, what came out, whether ONNX Runtime still
gives the original's answers on realistic inputs, and how fast the result runs, in turn with the
original.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import onnx

from benchmarks.peers import TOOLS
from benchmarks.processes import measure
from benchmarks.results import Results
from benchmarks.zoo import example_feeds, model_path
from onnxopt.instruments.verify import Referee
from onnxopt.model import bytes_on_disk
from onnxopt.runtime.compare import worst
from onnxopt.runtime.statistics import ratio
from onnxopt.runtime.trial import race
from onnxopt.runtime.worker import shared_worker

__all__ = ["REAL_MODELS", "SCALING_MODELS", "run"]

REAL_MODELS = (
    "lite0-bn",
    "lite0-folded",
    "minilm",
    "ocr-det",
    "ocr-rec",
    "ocr-cls",
    "silero-vad",
    "digits",
)
SCALING_MODELS = ("chain-1000", "chain-5000", "chain-20000", "transformer-1.2gb")
#: A tool that takes longer on one model is stopped, so that the whole stays under two hours.
_LIMIT_SECONDS = 150.0
_RACE_SECONDS = 6.0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    everything = (*REAL_MODELS, *SCALING_MODELS)
    parser.add_argument("--models", nargs="+", default=everything, metavar="NAME")
    parser.add_argument("--tools", nargs="+", default=tuple(TOOLS), choices=tuple(TOOLS))
    parser.add_argument("--fresh", action="store_true", help="measure chosen rows again")
    chosen = parser.parse_args(arguments)
    results = Results("simplification")
    if chosen.fresh:
        for key in [f"{model}/{tool}" for model in chosen.models for tool in chosen.tools]:
            results.pop(key, None)
    run(results, chosen.models, chosen.tools)


def run(results: Results, models: Sequence[str], tools: Sequence[str]) -> None:
    """Measure what is not in the results yet."""
    for model in models:
        source = model_path(model)
        for tool in tools:
            key = f"{model}/{tool}"
            if key in results:
                continue
            results[key] = _measure(model, source, tool)
            print(f"{key}: {results[key]}", flush=True)


def _measure(model: str, source: pathlib.Path, tool: str) -> dict[str, Any]:
    external = bytes_on_disk(source) != source.stat().st_size
    with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
        target = pathlib.Path(folder) / f"{model}.onnx"
        command = TOOLS[tool].command(source, target, external)
        cost = measure(command, _LIMIT_SECONDS)
        row: dict[str, Any] = {
            "model": model,
            "tool": tool,
            **dataclasses.asdict(cost),
            "before": _facts(source),
        }
        if cost.code == 0 and target.exists():
            row["after"] = _facts(target)
            row |= _held_against(model, source, target, large=external)
    return row


def _facts(path: pathlib.Path) -> dict[str, int]:
    proto = onnx.load(str(path), load_external_data=False)
    return {
        "nodes": len(proto.graph.node),
        "all_nodes": _count(proto.graph) + sum(len(f.node) for f in proto.functions),
        "bytes": bytes_on_disk(path),
    }


def _count(graph: onnx.GraphProto) -> int:
    total = len(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                total += _count(attribute.g)
            total += sum(_count(body) for body in attribute.graphs)
    return total


def _held_against(
    model: str, source: pathlib.Path, target: pathlib.Path, *, large: bool
) -> dict[str, Any]:
    """Answers and speed on realistic inputs; large models are not raced."""
    worker = shared_worker("benchmark")
    feeds = [example_feeds(model, batch=1, seed=1), example_feeds(model, batch=2, seed=2)]
    referee = Referee(worker, source, lambda try_run: feeds)
    objection, trial, differences = referee.judge(target, fusions=False)
    if trial is None:
        return {"runs": False, "why": "" if objection is None else objection.message}
    bad = worst(differences)
    row: dict[str, Any] = {
        "runs": True,
        "agrees": objection is None,
        "worst_db": None if bad is None else bad.snr_db,
        "why": "" if objection is None else objection.message,
        "load_seconds": [referee.reference.info.load_seconds, trial.info.load_seconds],
    }
    if not large:
        samples = race(worker, [source, target], feeds[0], seconds=_RACE_SECONDS)
        row["speed"] = dataclasses.asdict(ratio(*samples))
    return row


if __name__ == "__main__":
    main()
