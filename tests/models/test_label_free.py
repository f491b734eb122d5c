"""What the examples without labels measure with."""

from pathlib import Path

import numpy as np
import pytest

from models.line_recognition.evaluate import error_rate
from models.line_recognition.lines import edit_distance
from models.sentence_encoder.evaluate import spearman
from models.sentence_encoder.samples import training_texts


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("abc", "abc", 0), ("ab", "ba", 2)],
)
def test_edit_distance(one: str, other: str, distance: int) -> None:
    assert edit_distance(one, other) == edit_distance(other, one) == distance


def test_error_rate() -> None:
    assert error_rate(["abcd", "xy"], ["abcd", "xyz"]) == pytest.approx(1 / 7)


def test_spearman() -> None:
    one = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(one, one**3) == pytest.approx(1.0)
    assert spearman(one, -one) == pytest.approx(-1.0)
    # Ranks 1, 2.5, 2.5, 4 beside 1 to 4: 1 - their covariance by hand.
    assert spearman(np.array([1.0, 2.0, 2.0, 3.0]), one) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_words_and_paragraphs_are_among_the_samples() -> None:
    sentences = [f"word{number} is here." for number in range(18)]
    texts = training_texts(sentences)
    assert set(sentences) <= set(texts)
    assert sum(text.count("word") > 1 for text in texts) == 2
    assert len(texts) == 18 + 2 * 3
    assert texts == training_texts(sentences)


@pytest.mark.parametrize("example", ["sentence_encoder", "line_recognition"])
def test_recipes_can_be_read(example: str) -> None:
    pytest.importorskip("torch")
    from onnxopt.compress_recipe import read_compress_recipe

    found = read_compress_recipe(Path(__file__).parents[2] / "models" / example / "recipe.toml")
    assert found.settings.target.of == "latency"
    assert found.settings.amount is None
    assert found.budget["min_sqnr"] == 0
