"""The figures that README quotes, made from the results alone."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.markdown import between_marks, span
from benchmarks.peers import TOOLS
from benchmarks.results import Results

__all__ = ["write"]

_README = pathlib.Path(__file__).parents[1] / "README.md"
_SIMPLIFIED = {
    "PP-OCR detection": "ocr-det",
    "PP-OCR recognition": "ocr-rec",
    "PP-OCR orientation": "ocr-cls",
    "all-MiniLM-L6": "minilm",
    "EfficientNet-lite0 with BatchNorm": "lite0-bn",
    "silero-vad, bodies included": "silero-vad",
    "a chain of 5,000 small nodes": "chain-5000",
    "a 1.2 GB transformer": "transformer-1.2gb",
}
_QUANTIZED = {
    "all-MiniLM-L6": "minilm",
    "EfficientNet-lite0": "lite0-folded",
    "PP-OCR recognition": "ocr-rec",
    "PP-OCR detection": "ocr-det",
}
_OURS = "onnxopt"
#: Where nodes are so many that making them fewer takes a while, it is said how long.
_MANY = 2_000


def write() -> None:
    """Put what is quoted between its marks into README; where nothing is measured, it is kept."""
    text = _README.read_text()
    quoted = {"demo": _demo(), "simplified": _simplified(), "quantized": _quantized()}
    for name, lines in quoted.items():
        text = between_marks(text, name, "".join(f"{line}\n" for line in lines))
    _README.write_text(text)


def _demo() -> Iterator[str]:
    row = Results("demo").get("fashion-mnist")
    if row is None:
        return
    before, after = row["accuracy"]
    yield from ("", "```", *row["printed"], "```", "")
    yield (
        "followed by the accuracy of both on 2,000 test images "
        f"({before:.2f} % before, {after:.2f} % after: within chance). "
        "Times are of the machine at hand."
    )


def _simplified() -> Iterator[str]:
    yield "| model | nodes | onnxopt | best of the others | speed of our result | of theirs |"
    yield "| --- | --- | --- | --- | --- | --- |"
    results = Results("simplification")
    for words, model in _SIMPLIFIED.items():
        ours = results.get(f"{model}/{_OURS}")
        if ours is None:
            continue
        rows = (results.get(f"{model}/{tool}") for tool in TOOLS if tool != _OURS)
        others = [row for row in rows if row and row.get("runs") and row.get("agrees")]
        best = min(others, key=lambda row: int(row["after"]["all_nodes"]))
        nodes = ours["before"]["all_nodes"]
        cells = [_nodes(row, nodes >= _MANY) for row in (ours, best)]
        speeds = [row["speed"]["median"] for row in others if row.get("speed")]
        own = f"{ours['speed']['median']:.2f}x" if ours.get("speed") else ""
        yield f"| {words} | {nodes:,} | {cells[0]} | {cells[1]} | {own} | {span(speeds)} |"


def _nodes(row: Mapping[str, Any], with_cost: bool) -> str:
    text = f"{row['after']['all_nodes']:,}"
    if with_cost:
        text += f" in {row['seconds']:.1f} s, {row['peak_bytes'] / 1e9:.1f} GB"
    return text


def _quantized() -> Iterator[str]:
    yield "| model | onnxopt | ONNX Runtime static, best practice | ONNX Runtime dynamic |"
    yield "| --- | --- | --- | --- |"
    results = Results("quantization")
    for words, model in _QUANTIZED.items():
        cells = [
            _outcome(results.get(f"{model}/{recipe}"))
            for recipe in (_OURS, "ort-minmax", "ort-dynamic")
        ]
        yield f"| {words} | {' | '.join(cells)} |"


def _outcome(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    if "failure" in row:
        return "does not run" if row["failure"].startswith("does not run") else "fails"
    text = f"{row['speed'][0]:.2f}x, {row['sqnr_db']:.1f} dB"
    agreement = row["agreement"]
    return text if agreement is None else f"{text}, {agreement['fraction']:.1%} decide the same"
