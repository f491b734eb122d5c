"""8-bit models of onnxopt beside those of ONNX Runtime's own recipes.

Usage::

    python -m benchmarks.quantization DATA                   # what is missing in the results
    python -m benchmarks.quantization DATA --models minilm --recipes onnxopt --fresh
    python -m benchmarks.quantization --page                 # only the table

``DATA`` is a folder with ``photos64.npz``, ``imagenet20.npz`` and ``movie_sentences.npz`` (see
`benchmarks.quantization_data`). Each model is calibrated on 32 inputs and judged on 32 others,
classifiers and the recognizer of text on 200, the one of photographs also on 200 crops and mirror
images of ImageNet's, which are of the kind that it was trained for: fidelity to the original's
outputs, agreement of decisions, size, and speed as the median of paired, interleaved runs on one
thread.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quantization_data import feeds, write
from benchmarks.quantization_recipes import RECIPES
from benchmarks.results import Results
from benchmarks.zoo import model_path
from onnxopt.accuracy import Fidelity, fidelity
from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.model import bytes_on_disk
from onnxopt.runtime.statistics import ratio
from onnxopt.runtime.trial import race
from onnxopt.runtime.worker import Worker

__all__ = ["main"]

MODELS = ("lite0-folded", "minilm", "ocr-det", "ocr-rec", "ocr-cls", "silero-vad", "digits")
#: Where what counts is decisions, few of which are nearly tied: 32 inputs hold too few of those.
_CLASSIFIERS = ("lite0-folded", "ocr-cls", "ocr-rec", "digits")
_CALIBRATION = range(32)
_JUDGED, _JUDGED_CLASSIFIER = range(32, 64), range(32, 232)
#: Other inputs that a model is judged on besides: which, and how many.
_BESIDES = {"lite0-folded": ("lite0-imagenet", range(200))}
_MOST_SECONDS = 1200.0
_RACE_SECONDS = 6.0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("data", type=Path, nargs="?", help="folder with the inputs' sources")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument(
        "--recipes", "--tools", nargs="+", default=tuple(RECIPES), choices=tuple(RECIPES)
    )
    parser.add_argument("--fresh", action="store_true", help="measure chosen rows again")
    parser.add_argument("--keep", type=Path, help="folder for the models that are made")
    parser.add_argument("--page", action="store_true", help="print the table, measure nothing")
    chosen = parser.parse_args(arguments)
    results = Results("quantization")
    if not chosen.page:
        if chosen.data is None:
            parser.error("name the folder with the inputs' sources")
        for model in chosen.models:
            _measure(results, model, chosen.recipes, chosen.data, chosen.fresh, chosen.keep)
    print(table(results))


def _measure(
    results: Results,
    model: str,
    recipes: Sequence[str],
    data: Path,
    fresh: bool,
    keep: Path | None,
) -> None:
    missing = [recipe for recipe in recipes if fresh or f"{model}/{recipe}" not in results]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples"
        write(model, data, _CALIBRATION, samples)
        for recipe in missing:
            print(f"{model}/{recipe}", file=sys.stderr)
            made = (keep or Path(folder)) / f"{model}-{recipe}.onnx"
            row = _make(recipe, model, samples, made)
            if "failure" not in row:
                row |= _judge(model, made, data)
            results[f"{model}/{recipe}"] = row


def _make(recipe: str, model: str, samples: Path, made: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.quantization_recipes", recipe]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [*command, str(model_path(model)), str(samples), str(made)],
            capture_output=True,
            text=True,
            timeout=_MOST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"not done within {_MOST_SECONDS:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"failure": lines[-1][:200] if lines else f"exit code {done.returncode}"}
    return {"seconds": time.perf_counter() - start}


def _judge(model: str, made: Path, data: Path) -> dict[str, Any]:
    """How true and how fast a model is, next to its original."""
    original = model_path(model)
    judged = _JUDGED_CLASSIFIER if model in _CLASSIFIERS else _JUDGED
    with Worker() as worker:
        try:
            sessions = [worker.open(path).session for path in (original, made)]
            names = [port.name for port in worker.open(original).outputs]
            found = _fidelity(worker, sessions, names, feeds(model, data, judged))
            besides = None
            if model in _BESIDES:
                kind, which = _BESIDES[model]
                besides = _fidelity(worker, sessions, names, feeds(kind, data, which))
            (first,) = feeds(model, data, range(32, 33))
            speed = ratio(*race(worker, [original, made], first, seconds=_RACE_SECONDS))
        except (RuntimeRefusalError, RuntimeCrashError) as error:
            told = str(error).replace(f"{made.parent}/", "")[:200]
            return {"failure": f"does not run: {told}"}
    row = {
        "bytes": [bytes_on_disk(original), bytes_on_disk(made)],
        "speed": [speed.median, speed.low, speed.high],
        **_figures(found),
    }
    if besides is not None:
        row["besides"] = {"inputs": _BESIDES[model][0], **_figures(besides)}
    return row


def _fidelity(
    worker: Worker, sessions: Sequence[int], names: Sequence[str], inputs: Iterable[dict[str, Any]]
) -> Fidelity:
    outputs: list[list[Any]] = [[], []]
    for feed in inputs:
        for session, kept in zip(sessions, outputs, strict=True):
            kept.append(worker.run(session, feed))
    return fidelity(outputs[0], outputs[1], names)


def _figures(found: Fidelity) -> dict[str, Any]:
    agreement = found.agreement
    return {
        "sqnr_db": found.sqnr_db,
        "cosine": found.cosine,
        "agreement": None if agreement is None else agreement.to_dict(),
        "judged": found.samples,
    }


def table(results: Results) -> str:
    """The results as Markdown."""
    lines = [
        "| model | recipe | speed | fidelity | cosine | same decisions | size | made in |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model in MODELS:
        for recipe in RECIPES:
            row = results.get(f"{model}/{recipe}")
            if row is not None:
                lines.append(f"| {model} | {recipe} | {_cells(row)} |")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> str:
    if "failure" in row:
        return f"{row['failure'].replace('|', '/')} | | | | |"
    median, low, high = row["speed"]
    before, after = row["bytes"]
    judged = [row, *([row["besides"]] if "besides" in row else [])]
    cells = [
        f"{median:.2f}x ({low:.2f} to {high:.2f})",
        "; ".join(_decibels(each) for each in judged),
        "; ".join(f"{each['cosine']:.4f}" for each in judged),
        "; ".join(_same(each) for each in judged),
        f"{after / before:.0%}",
        f"{row['seconds']:.0f} s",
    ]
    return " | ".join(cells)


def _decibels(row: dict[str, Any]) -> str:
    decibels = row["sqnr_db"]
    return "exact" if decibels is None else f"{decibels:.1f} dB"


def _same(row: dict[str, Any]) -> str:
    agreement = row["agreement"]
    return "" if agreement is None else f"{agreement['fraction']:.1%} of {agreement['total']:,}"


if __name__ == "__main__":
    main()
