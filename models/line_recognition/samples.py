"""Writes the rendered lines that ``onnxopt compress`` learns from, one ``.npz`` file each.

    python -m models.line_recognition.samples --data DATA --out samples/

``DATA`` holds ``movie_sentences.npz``; Pillow and the DejaVu fonts are needed. Only pictures are
written, no texts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from models.line_recognition.lines import lines


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write the samples to learn from.")
    parser.add_argument("--data", type=Path, required=True, help="folder of movie_sentences.npz")
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder to write to")
    parser.add_argument("--count", type=int, default=2_000, help="lines (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    numbers = range(0, 2 * arguments.count, 2)
    for number, line in enumerate(lines(arguments.data / "movie_sentences.npz", numbers)):
        np.savez(arguments.out / f"{number:05}.npz", x=line.picture)
    print(f"{arguments.count:,} lines in {arguments.out}")


if __name__ == "__main__":
    main()
