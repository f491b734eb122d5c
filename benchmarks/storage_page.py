"""The tables of docs/storage.md, made from the results of `benchmarks.storage` alone."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks.results import FOLDER, Results

__all__ = ["write"]

_PAGE = pathlib.Path(__file__).parents[1] / "docs" / "storage.md"

_MARK = "<!-- What follows is written by the benchmark. -->"
_COLUMNS = (
    *("weights", "zeros", "dense", "compact", "sparse", "zip of dense", "zip of compact"),
    *("load: dense", "compact", "sparse", "peak: dense", "compact", "sparse", "speed"),
)
_HEAD = (f"| {' | '.join(_COLUMNS)} |", "| --- " * len(_COLUMNS) + "|")


def write(results: Results) -> None:
    """Write the tables into the page, behind what is written by hand."""
    prose, mark, _ = _PAGE.read_text().partition(_MARK)
    parts = [prose + mark, "", _environment()]
    for model in dict.fromkeys(key.split("/")[0] for key in results):
        lines = [_line(key, results[key]) for key in sorted(results) if key.startswith(f"{model}/")]
        parts += ["", f"### {model}", "", *_HEAD, *lines]
    _PAGE.write_text("\n".join(parts) + "\n")


def _environment() -> str:
    facts = json.loads((FOLDER / "storage.json").read_text())["environment"]
    return (
        f"Machine: {facts['processor']}, {facts['cores']} cores, ONNX Runtime "
        f"{facts['versions']['onnxruntime']}, one thread."
    )


def _line(key: str, row: Mapping[str, Any]) -> str:
    _, kind, sparsity = key.split("/")
    dense, load, speed = row["bytes"]["dense"], row["load"], row["speed"]
    cells = [
        kind,
        f"{float(sparsity):.0%}",
        f"{dense / 1e6:.2f} MB",
        f"**{dense / row['bytes']['compact']:.2f}x**",
        f"{dense / row['bytes']['coo']:.2f}x",
        *(f"{dense / row['zip_bytes'][each]:.2f}x" for each in ("dense", "compact")),
        *(f"{load[each]['seconds'] * 1e3:.0f} ms" for each in ("dense", "compact", "coo")),
        *(f"{load[each]['peak_bytes'] / 1e6:.0f} MB" for each in ("dense", "compact", "coo")),
        f"{speed['median']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})",
    ]
    return f"| {' | '.join(cells)} |"
