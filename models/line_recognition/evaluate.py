"""Compares recognizers with the original and with the truth, on lines that nobody learned from.

    python -m models.line_recognition.evaluate ocr-rec.onnx small.onnx --data DATA

Prints the character error rate of each model (edits over characters of the truth), and how far the
compressed ones read something else than the original.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import onnxruntime

from models.line_recognition.lines import Line, edit_distance, lines, read

__all__ = ["error_rate"]


def error_rate(given: list[str], wanted: list[str]) -> float:
    """Edits over characters."""
    edits = sum(edit_distance(one, other) for one, other in zip(given, wanted, strict=True))
    return edits / max(1, sum(map(len, wanted)))


def _read(model: str, found: list[Line]) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [read(session, line.picture) for line in found]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Character error rates.")
    parser.add_argument("original")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1_000, help="lines (default: %(default)s)")
    arguments = parser.parse_args()
    numbers = range(1_000_001, 1_000_001 + 2 * arguments.count, 2)
    found = list(lines(arguments.data / "movie_sentences.npz", numbers))
    truth = [line.text for line in found]
    original = _read(arguments.original, found)
    characters = sum(map(len, truth))
    print(f"{len(found):,} lines, {characters:,} characters")
    print(f"{arguments.original}: error rate {error_rate(original, truth):.2%}")
    for model in arguments.models:
        given = _read(model, found)
        print(
            f"{model}: error rate {error_rate(given, truth):.2%}, against the original's text "
            f"{error_rate(given, original):.2%}"
        )


if __name__ == "__main__":
    main()
