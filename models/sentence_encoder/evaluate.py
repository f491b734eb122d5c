"""Holds compressed encoders against the original on sentences that nothing learned from.

    python -m models.sentence_encoder.evaluate minilm.onnx small.onnx --data DATA

Prints the cosine between the sentence embeddings of both (mean, and the worst of a hundred), and
for each model Spearman's rank correlation between the cosine of two words and what people say of
their likeness (WordSim-353). ``DATA`` holds ``movie_sentences.npz`` and ``wordsim353.npz``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.sentence_encoder.tokens import embed, sentences

__all__ = ["spearman", "word_likeness"]

Array = NDArray[Any]


def spearman(one: Array, other: Array) -> float:
    """Spearman's rank correlation; equal values share their mean rank."""
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Array) -> Array:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])


def word_likeness(session: Any, file: Path) -> float:
    """Spearman's correlation of a model with people on ``wordsim353.npz``."""
    with np.load(file) as arrays:
        first, second, human = arrays["w1"], arrays["w2"], arrays["human"]
    one, other = (embed(session, [str(word) for word in words]) for words in (first, second))
    return spearman((one * other).sum(axis=1), human)


def _session(model: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Cosine to the original, and WordSim-353.")
    parser.add_argument("original")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    _, texts = sentences(arguments.data / "movie_sentences.npz")
    words = arguments.data / "wordsim353.npz"
    original = _session(arguments.original)
    wanted = embed(original, texts)
    print(f"{arguments.original}: WordSim-353 {word_likeness(original, words):.4f}")
    for model in arguments.models:
        session = _session(model)
        cosines = (embed(session, texts) * wanted).sum(axis=1)
        print(
            f"{model}: cosine {cosines.mean():.4f} on {len(texts):,} sentences, worst of a hundred "
            f"{np.quantile(cosines, 0.01):.4f}; WordSim-353 {word_likeness(session, words):.4f}"
        )


if __name__ == "__main__":
    main()
