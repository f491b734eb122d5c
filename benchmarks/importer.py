"""Importing models into PyTorch, beside other importers: the tables of docs/training.md.

Usage::

    python -m benchmarks.importer            # what is missing in the results, and the tables
    python -m benchmarks.importer --fresh    # all over again
    python -m benchmarks.importer --page     # only the tables

Each model is run at two batch sizes and compared with ONNX Runtime; a step of SGD is taken, and the
weights are written back. Training steps, and steps of the distillation loop, are timed beside the
networks that models come from.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime

from benchmarks.importer_training import PAIRS
from benchmarks.peers import peer_python
from benchmarks.results import Results
from benchmarks.zoo import REGISTRY, example_feeds, model_path

__all__ = ["main", "table"]

_HERE = pathlib.Path(__file__).parent
_ENVIRONMENT = _HERE / ".importer-peers"
_PEERS = ("onnx2torch", "onnx2pytorch")
_TOOLS = ("onnxopt", *_PEERS)
_EXAMPLES_FOLDER = _HERE.parent / "models"
#: Examples that are kept with the project; all take images of 28 by 28 pixels.
_EXAMPLES = {
    "fashion_mnist": _EXAMPLES_FOLDER / "fashion_mnist" / "fashion_mnist.onnx",
    "fashion_resnet": _EXAMPLES_FOLDER / "fashion_resnet" / "teacher.onnx",
    "fashion_resnet-int8": _EXAMPLES_FOLDER / "fashion_resnet" / "small.onnx",
}
_MODELS = (*(name for name, model in REGISTRY.items() if model.packages), *_EXAMPLES)
_LIMIT_SECONDS = 600
#: Steps beside those of the native network: of plain SGD, and of the loop that distills.
_LOOPS = {"training": "benchmarks.importer_training", "distilling": "benchmarks.distill_training"}
_BATCHES = (2, 3)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=_MODELS, choices=_MODELS)
    parser.add_argument("--tools", nargs="+", default=_TOOLS, choices=_TOOLS)
    parser.add_argument("--fresh", action="store_true", help="measure chosen rows again")
    parser.add_argument("--page", action="store_true", help="write the tables and measure nothing")
    chosen = parser.parse_args(arguments)
    results = Results("importer")
    if not chosen.page:
        for name in chosen.models:
            for tool in chosen.tools:
                _measure(results, f"{name}/{tool}", chosen.fresh, _import_row(name, tool))
        everything = chosen.models == _MODELS and chosen.tools == _TOOLS
        for name in PAIRS if everything else ():
            for what, program in _LOOPS.items():
                _measure(results, f"{name}/{what}", chosen.fresh, _training_row(name, program))
    print(table(results))


def _measure(
    results: Results, key: str, fresh: bool, measure: Callable[[], dict[str, Any]]
) -> None:
    if fresh or key not in results:
        print(key, file=sys.stderr)
        results[key] = measure()


def _import_row(name: str, tool: str) -> Callable[[], dict[str, Any]]:
    def measure() -> dict[str, Any]:
        path, feeds = _path(name), [_feeds(name, batch) for batch in _BATCHES]
        with tempfile.TemporaryDirectory() as folder:
            expected = [_runtime(path, feed) for feed in feeds]
            if tool == "onnxopt":
                return _own(path, feeds, expected, pathlib.Path(folder))
            cases = pathlib.Path(folder, "cases.npz")
            _write_cases(cases, feeds, expected)
            script = str(_HERE / "importer_peer.py")
            python = peer_python(_ENVIRONMENT, _HERE / "importer-requirements.txt")
            command = [python, script, tool, str(path), str(cases)]
            return _answer(command)

    return measure


def _path(name: str) -> pathlib.Path:
    return _EXAMPLES[name] if name in _EXAMPLES else model_path(name)


def _feeds(name: str, batch: int) -> dict[str, Any]:
    if name not in _EXAMPLES:
        return example_feeds(name, batch, seed=batch)
    pixels = np.random.default_rng(batch).uniform(0, 1, (batch, 1, 28, 28))
    return {"image": pixels.astype(np.float32)}


def _runtime(path: pathlib.Path, feed: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, feed)
    return outputs


def _write_cases(
    path: pathlib.Path, feeds: list[dict[str, Any]], expected: list[list[Any]]
) -> None:
    arrays: dict[str, Any] = {}
    for run, (feed, outputs) in enumerate(zip(feeds, expected, strict=True)):
        arrays.update({f"{run}/in/{name}": array for name, array in feed.items()})
        arrays.update({f"{run}/out/{place}": array for place, array in enumerate(outputs)})
    np.savez(path, **arrays)


def _own(
    path: pathlib.Path,
    feeds: list[dict[str, Any]],
    expected: list[list[Any]],
    folder: pathlib.Path,
) -> dict[str, Any]:
    import torch

    from onnxopt.model import load, save
    from onnxopt.training import import_model, write_back_file

    torch.set_num_threads(1)
    start = time.perf_counter()
    module = import_model(path)
    seconds = time.perf_counter() - start

    def run(feed: dict[str, Any]) -> tuple[Any, ...]:
        results = module(**{name: torch.from_numpy(array) for name, array in feed.items()})
        return results if isinstance(results, tuple) else (results,)

    errors = []
    for feed, outputs in zip(feeds, expected, strict=True):
        with torch.no_grad():
            errors.append(_error([each.numpy() for each in run(feed)], outputs))
    same = not write_back_file(module, path, folder / "same.onnx")
    same = same and (folder / "same.onnx").read_bytes() == path.read_bytes()
    optimizer = torch.optim.SGD(module.parameters(), 1e-3)
    sum(each.square().mean() for each in run(feeds[0])).backward()
    with_gradient = sum(
        each.numel()
        for each in module.parameters()
        if each.grad is not None and bool(each.grad.any())
    )
    optimizer.step()
    changed = write_back_file(module, path, folder / "trained.onnx")
    # The same writer: it leaves out fields that are there and empty.
    save(load(path), folder / "rewritten.onnx")
    with torch.no_grad():
        trained = [each.numpy() for each in run(feeds[0])]
    return {
        "imports": True,
        "errors": errors,
        "trainable": sum(each.numel() for each in module.parameters()),
        "gradients": with_gradient,
        "import_seconds": seconds,
        "zero_steps_same_bytes": same,
        "one_step_changes": len(changed),
        "one_step_changes_only_weights": _only(
            folder / "rewritten.onnx", folder / "trained.onnx", set(changed)
        ),
        "trained_error": _error(trained, _runtime(folder / "trained.onnx", feeds[0])),
    }


def _error(results: list[Any], expected: list[Any]) -> float:
    """Largest difference, of the largest output."""
    return max(
        float(np.abs(result - wanted).max()) / max(float(np.abs(wanted).max()), 1e-9)
        for result, wanted in zip(results, expected, strict=True)
    )


def _only(before: pathlib.Path, after: pathlib.Path, changed: set[str]) -> bool:
    """Whether nothing but the named tensors differs between two files."""
    one, other = (_without(onnx.load(path), changed) for path in (before, after))
    return one == other


def _without(model: onnx.ModelProto, names: set[str]) -> tuple[bytes, dict[str, bytes]]:
    """The graph without the numbers of some tensors, and all the initializers left."""
    kept = {each.name: each for each in model.graph.initializer if each.name not in names}
    del model.graph.initializer[:]
    pending = [model.graph]
    while pending:
        for node in pending.pop().node:
            if node.op_type == "Constant" and node.output[0] in names:
                del node.attribute[:]
            pending.extend(each.g for each in node.attribute if each.HasField("g"))
    arrays = {name: onnx.numpy_helper.to_array(each).tobytes() for name, each in kept.items()}
    return model.SerializeToString(deterministic=True), arrays


def _answer(command: list[str]) -> dict[str, Any]:
    """What a program prints as its last line, or how it ended."""
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"imports": False, "message": f"stopped after {_LIMIT_SECONDS} s"}
    if process.returncode != 0:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        return {"imports": False, "message": last[:160]}
    answer: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    return answer


def _training_row(name: str, module: str) -> Callable[[], dict[str, Any]]:
    def measure() -> dict[str, Any]:
        program = [sys.executable, "-m", module, name]
        seconds = _answer([*program, "time"])
        peaks = {side: _answer([*program, side]) for side in ("native", "ours")}
        return {"seconds": seconds, **{f"{side}_peak": each for side, each in peaks.items()}}

    return measure


def table(results: Results) -> str:
    lines = [
        "| model | tool | error, batch 2, 3 | trainable | with gradient | zero steps | one step |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in _MODELS:
        for tool in ("onnxopt", *_PEERS):
            if (row := results.get(f"{name}/{tool}")) is not None:
                lines.append(_import_line(name, tool, row))
    for what, ours in (("training", "imported"), ("distilling", "distilling")):
        lines += [
            "",
            f"| model | native, s a step | {ours} | ratio | peak, native | {ours} | ratio |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name in PAIRS:
            if (row := results.get(f"{name}/{what}")) is not None:
                lines.append(_training_line(name, row))
    return "\n".join(lines)


def _import_line(name: str, tool: str, row: dict[str, Any]) -> str:
    if not row["imports"] or "message" in row:
        stage = "runs not" if row["imports"] else "imports not"
        return f"| {name} | {tool} | {stage}: {row.get('message', '')} | | | | |"
    errors = ", ".join("infinite" if each is None else f"{each:.0e}" for each in row["errors"])
    steps = ["", ""]
    if "zero_steps_same_bytes" in row:
        steps[0] = "same bytes" if row["zero_steps_same_bytes"] else "other bytes"
        only = row["one_step_changes_only_weights"]
        steps[1] = f"{row['one_step_changes']} weights" + ("" if only else " and more")
    return (
        f"| {name} | {tool} | {errors} | {row['trainable']:,} | {row['gradients']:,} | "
        f"{steps[0]} | {steps[1]} |"
    )


def _training_line(name: str, row: dict[str, Any]) -> str:
    failure = next((part["message"] for part in row.values() if "message" in part), None)
    if failure is not None:
        return f"| {name} | cannot be measured: {failure} | | | | | |"
    native, ours = row["seconds"]["native"], row["seconds"]["ours"]
    ratio = statistics.median(own / other for own, other in zip(ours, native, strict=True))
    peaks = [row[f"{side}_peak"]["peak_kib"] / 1024 for side in ("native", "ours")]
    return (
        f"| {name} | {statistics.median(native):.2f} | {statistics.median(ours):.2f} | "
        f"{ratio:.2f} | {peaks[0]:.0f} MiB | {peaks[1]:.0f} MiB | {peaks[1] / peaks[0]:.2f} |"
    )


if __name__ == "__main__":
    main()
