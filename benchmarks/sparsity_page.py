"""The tables of docs/sparsity.md, made from the results of `benchmarks.sparsity` alone."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks.results import FOLDER, Results

__all__ = ["write"]

_PAGE = pathlib.Path(__file__).parents[1] / "docs" / "sparsity.md"
_MARK = "<!-- What follows is written by the benchmark. -->"


def write(results: Results) -> None:
    """Write the tables into the page, behind what is written by hand."""
    prose, mark, _ = _PAGE.read_text().partition(_MARK)
    parts = [prose + mark, "", _environment()]
    keys = [key.split("/") for key in results]
    for model in dict.fromkeys(model for model, _, _ in keys):
        levels = sorted({level for name, _, level in keys if name == model})
        head = ["", *(f"{float(each):.0%}" if ":" not in each else each for each in levels)]
        parts += ["", f"### {model}", "", f"| {' | '.join(head)} |"]
        parts += ["| --- " * len(head) + "|"]
        for tool in sorted({tool for name, tool, _ in keys if name == model}):
            cells = [_cell(results.get(f"{model}/{tool}/{level}")) for level in levels]
            parts.append(f"| {' | '.join([tool, *cells])} |")
    _PAGE.write_text("\n".join(parts) + "\n")


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if "failed" in row:
        return row["failed"] if row["failed"].startswith("stopped") else "fails"
    text = f"{row['sqnr_db']:.1f} dB"
    if row["agreement"] is None:
        text += f", {row['cosine']:.3f}"
    else:
        text += f", {row['agreement']:.0%}"
    return f"{text} ({row['zeros']:.0%})"


def _environment() -> str:
    facts = json.loads((FOLDER / "sparsity.json").read_text())["environment"]
    return (
        f"Machine: {facts['processor']}, {facts['cores']} cores, ONNX Runtime "
        f"{facts['versions']['onnxruntime']}, one thread."
    )
