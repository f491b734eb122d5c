"""The tables of docs/scale.md, made from the results alone."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.markdown import between_marks
from benchmarks.results import FOLDER, Results

__all__ = ["plan", "write"]

_PAGE = pathlib.Path(__file__).parents[1] / "docs" / "scale.md"
_SAMPLES = 10_000_000
_MODELS = 10_000


def write(results: Results) -> None:
    """Put the tables between their marks into the page, which is kept otherwise."""
    text = _PAGE.read_text()
    for name, content in (
        ("machine", _machine()),
        ("two", _table(_two(results))),
        ("units", _table(_units(results))),
        ("plans", _table(_plans(text, results))),
    ):
        text = between_marks(text, name, f"{content}\n")
    _PAGE.write_text(text)


def plan(text: str) -> dict[str, Any]:
    """The names that the page's Python defines."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    return names


def _machine() -> str:
    facts = json.loads((FOLDER / "scaling.json").read_text())["environment"]
    return (
        f"Measured on {facts['processor']}, {facts['cores']} cores, one thread for an operator, "
        f"ONNX Runtime {facts['versions']['onnxruntime']} (`python -m benchmarks.scaling`)."
    )


def _two(results: Results) -> Iterator[Sequence[str]]:
    yield "model", "samples", "one worker", "two", "times as fast", "plain inference", "ready after"
    for key, row in sorted(results.items()):
        if key.startswith("workers/"):
            low, high = min(row["ratios"]), max(row["ratios"])
            yield (
                row["model"],
                f"{row['samples']:,}",
                f"{row['seconds_one']:.2f} s",
                f"{row['seconds_two']:.2f} s" + ("" if row["bit_equal"] else ", **other bits**"),
                f"**{row['speedup']:.2f}** ({low:.2f} to {high:.2f})",
                f"{row['ceiling']:.2f} ({min(row['ceilings']):.2f} to {max(row['ceilings']):.2f})",
                f"{row['start_seconds']:.1f} s",
            )


def _units(results: Results) -> Iterator[Sequence[str]]:
    yield (
        "model",
        "a sample",
        "a piece, to whoever gives work",
        "it holds",
        "a model, exact passes",
        "of it timing",
    )
    names = dict.fromkeys(key.partition("/")[2] for key in sorted(results) if "/" in key)
    for name in names:
        sample, model = results.get(f"samples/{name}"), results.get(f"models/{name}")
        cells = ["", "", ""]
        if sample:
            cells = [
                f"{1e3 * sample['seconds']:.1f} ms",
                f"{1e3 * sample['piece_seconds']:.0f} ms",
                f"{sample['piece_bytes'] / 1e6:.1f} MB",
            ]
        if model:
            cells += [f"{model['seconds']:.1f} s", f"{model['timing_seconds']:.1f} s"]
        yield name, *cells


def _plans(text: str, results: Results) -> Iterator[Sequence[str]]:
    names = plan(text)
    yield "work", "1 worker", "8 workers, 4 machines", "64 workers, 16 machines"
    shapes = ((1, 1), (8, 4), (64, 16))
    for key in sorted(results):
        kind, _, model = key.partition("/")
        if kind == "samples":
            hours = [
                names["calibration_seconds"](_SAMPLES, results[key], workers) / 3600
                for workers, _ in shapes
            ]
            yield f"{_SAMPLES:,} samples of {model}", *map(_time, hours)
    if any(key.startswith("models/") for key in results):
        rows = [row for key, row in results.items() if key.startswith("models/")]
        hours = [
            names["batch_seconds"](_MODELS, rows, workers, machines) / 3600
            for workers, machines in shapes
        ]
        yield f"{_MODELS:,} models, mixed as above", *map(_time, hours)


def _time(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"


def _table(lines: Iterator[Sequence[str]]) -> str:
    head, *rows = lines
    return "\n".join(
        [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
        + [f"| {' | '.join(row)} |" for row in rows]
    )
