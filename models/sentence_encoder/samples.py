"""Writes the samples that ``onnxopt compress`` learns from, one ``.npz`` file each.

    python -m models.sentence_encoder.samples --data DATA --out samples/

``DATA`` holds ``movie_sentences.npz``. Four in five of its sentences are written; the others are
the test's. Some samples are a single word or several sentences, since an encoder is given those,
too.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

from models.sentence_encoder.tokens import feeds, sentences

__all__ = ["training_texts"]

#: In a dozen samples so many are single words, and so many are paragraphs.
_DOZEN, _WORDS, _PARAGRAPHS = 12, 2, 1
_PARAGRAPH = 5


def training_texts(training: list[str]) -> list[str]:
    """Sentences, and in between words and paragraphs made of them, in an order that is fixed."""
    generator = random.Random(0)
    parts = (word.strip(".,;:!?'\"()").lower() for text in training for word in text.split())
    words = sorted(set(parts) - {""})
    texts: list[str] = []
    step = _DOZEN - _WORDS - _PARAGRAPHS
    for start in range(0, len(training), step):
        texts += training[start : start + step]
        texts += generator.sample(words, _WORDS)
        texts += [" ".join(generator.sample(training, _PARAGRAPH)) for _ in range(_PARAGRAPHS)]
    generator.shuffle(texts)
    return texts


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write the samples to learn from.")
    parser.add_argument("--data", type=Path, required=True, help="folder of movie_sentences.npz")
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder to write to")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    training, _ = sentences(arguments.data / "movie_sentences.npz")
    count = 0
    for count, feed in enumerate(feeds(training_texts(training)), 1):
        np.savez(arguments.out / f"{count - 1:05}.npz", **feed)  # type: ignore[arg-type]  # numpy's stub knows one keyword of its own
    print(f"{count:,} samples in {arguments.out}")


if __name__ == "__main__":
    main()
