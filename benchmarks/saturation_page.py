"""The tables on saturation in docs/quantization.md, made from the results alone."""

from __future__ import annotations

import json
import pathlib

from benchmarks.markdown import between_marks
from benchmarks.results import FOLDER, Results
from benchmarks.saturation_kernels import NAMES

__all__ = ["write"]

_PAGE = pathlib.Path(__file__).parents[1] / "docs" / "quantization.md"


def write(results: Results) -> None:
    """Put the tables between their marks into the page, which is kept otherwise."""
    text = _PAGE.read_text()
    for mark, table in (("kernels", _kernels(results)), ("saturated", _models(results))):
        text = between_marks(text, mark, f"{table}\n")
    _PAGE.write_text(text)


def _kernels(results: Results) -> str:
    lines = ["| kernel | pair-safe | 7 bits | 8 bits | safe pairs as the model lays them out |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name in NAMES:
        row = results.get(f"kernel/{name}")
        if row is None:
            continue
        cells = []
        for scheme in ("pair-safe", "seven", "eight", "channels first"):
            found = row.get(scheme)
            cells.append("" if found is None else f"{max(found.values()):.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _models(results: Results) -> str:
    lines = ["| model | weights | products | with AVX2 | unoptimized | with VNNI | apart, steps |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    names = {"pair-safe": "pair-safe", "eight": "8 bits", "reduce_range": "7 bits, ONNX Runtime's"}
    for key, row in results.items():
        kind, _, name = key.partition("/")
        if kind != "model":
            continue
        for scheme, words in names.items():
            found = row[scheme]
            decibels = (found[key] for key in ("sqnr_db", "sqnr_db_disabled", "sqnr_db_here"))
            cells = (f"{each:.1f} dB" for each in decibels)
            apart = f"{found['steps']['rms']:.2f}, {found['steps_here']['rms']:.2f} with VNNI"
            lines.append(
                f"| {name} | {words} | {found['products']} | {' | '.join(cells)} | {apart} |"
            )
    facts = json.loads((FOLDER / "saturation.json").read_text())["environment"]
    return "\n".join(lines) + f"\n\nONNX Runtime {facts['versions']['onnxruntime']}."
