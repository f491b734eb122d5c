"""The tables of docs/calibration.md, made from the results alone."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

from benchmarks.results import FOLDER, Results

__all__ = ["write"]

_PAGE = pathlib.Path(__file__).parents[1] / "docs" / "calibration.md"
_NAMES = {
    "plain": "plain inference",
    "onnxopt": "onnxopt, all of these tensors",
    "onnxopt fused": "onnxopt, inputs of layers only",
}


def write(results: Results) -> None:
    """Put the tables between the marks in the page."""
    text = _PAGE.read_text()
    for mark, table in (("cost", _cost(results)), ("fidelity", _fidelity(results))):
        before, _, rest = text.partition(f"<!-- {mark} -->\n")
        _, _, after = rest.partition("<!-- end -->")
        text = f"{before}<!-- {mark} -->\n{table}\n<!-- end -->{after}"
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
    said = []
    for method, name in _NAMES.items():
        row = results.get(f"pace/{method}")
        if row is not None:
            said.append(f"{name} {row['median']:.2f} ({row['low']:.2f} to {row['high']:.2f})")
    return f"\n\nTime of a sample over that of plain inference, paired: {'; '.join(said)}."


def _machine() -> str:
    facts = json.loads((FOLDER / "calibration.json").read_text())["environment"]
    return f"\n\nMachine: {facts.get('processor')}, {facts.get('cores')} cores; 1 thread."
