"""The tables of docs/calibration.md, made from the results alone."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

from benchmarks.markdown import between_marks
from benchmarks.results import FOLDER, Results
from onnxopt.calibration.lots import DRAWN

__all__ = ["write"]

_PAGE = pathlib.Path(__file__).parents[1] / "docs" / "calibration.md"
_NAMES = {
    "plain": "plain inference",
    "onnxopt default": "onnxopt, all that quantization looks at",
    "onnxopt": "onnxopt, all of these tensors",
    "onnxopt fused": "onnxopt, inputs of layers only",
}


def write(results: Results) -> None:
    """Put the tables between the marks in the page."""
    text = _PAGE.read_text()
    for mark, table in (("cost", _cost(results)), ("fidelity", _fidelity(results))):
        text = between_marks(text, mark, f"{table}\n")
    _PAGE.write_text(text)


def _cost(results: Results) -> str:
    rows = _keys(results, "cost")
    methods = list(dict.fromkeys(method for method, _ in rows))
    counts = sorted({int(count) for _, count in rows})
    lines = [["", *(f"{count} samples" for count in counts)]]
    for method in methods:
        cells = []
        for count in counts:
            row = results.get(f"cost/{method}/{count}")
            if row is None:
                cells.append("")
            elif "seconds" not in row:
                cells.append("fails")
            else:
                cells.append(f"{row['seconds']:.1f} s, {row['peak_bytes'] / 1e6:.0f} MB")
        lines.append([_NAMES.get(method, f"onnxruntime {method}"), *cells])
    return _table(lines) + _pace(results) + _machine()


def _fidelity(results: Results) -> str:
    lines = [["ranges", "weights to the nearest", "weights and bias recovered"]]
    for method in dict.fromkeys(method for method, _ in _keys(results, "fidelity")):
        cells = []
        for recovery in ("nearest", "recovered"):
            row = results.get(f"fidelity/{method}/{recovery}")
            cells.append(f"{row['sqnr_db']:.1f} dB, {row['agreement']:.0%}" if row else "")
        name = method if method.startswith("onnxopt") else f"onnxruntime {method}"
        lines.append([name, *cells])
    return _table(lines)


def _keys(results: Results, kind: str) -> list[tuple[str, str]]:
    parts = [key.split("/") for key in results]
    return [(part[1], part[2]) for part in parts if part[0] == kind]


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, f"|{' --- |' * len(lines[0])}", *body])


def _pace(results: Results) -> str:
    """How much longer a sample takes than plain inference, paired."""
    lines = [["time of a sample, plain inference 1", f"of the first {DRAWN}", "of later ones"]]
    rows = [key.split("/")[1:] for key in results if key.startswith("pace/")]
    for model, method in dict.fromkeys((row[0], row[1]) for row in rows if len(row) == 3):
        cells = []
        for part in ("first", "later"):
            row = results[f"pace/{model}/{method}/{part}"]
            cells.append(f"{row['median']:.2f} ({row['low']:.2f} to {row['high']:.2f})")
        lines.append([f"{model}: {_NAMES[method]}", *cells])
    return f"\n\n{_table(lines)}" if len(lines) > 1 else ""


def _machine() -> str:
    facts = json.loads((FOLDER / "calibration.json").read_text())["environment"]
    return f"\n\nMachine: {facts.get('processor')}, {facts.get('cores')} cores; 1 thread."
