"""What an output is taken for."""

from typing import Any

import numpy as np
import pytest

from onnxopt.training.kinds import OutputKind, recognize, recognize_mask

RNG = np.random.default_rng(0)


def softmax(x: Any, axis: int) -> Any:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return (e / e.sum(axis=axis, keepdims=True)).astype(np.float32)


def unit(x: Any) -> Any:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


LOGITS = 8 * RNG.normal(size=(64, 10))
SEQUENCE = 8 * RNG.normal(size=(4, 40, 30))
MAP = 8 * RNG.normal(size=(2, 5, 12, 12))


@pytest.mark.parametrize(
    ("array", "kind", "axis"),
    [
        (LOGITS, OutputKind.LOGITS, 1),
        (softmax(LOGITS, 1), OutputKind.PROBABILITIES, 1),
        (np.log(softmax(LOGITS, 1)), OutputKind.LOG_PROBABILITIES, 1),
        (softmax(SEQUENCE, 2), OutputKind.PROBABILITIES, 2),
        (SEQUENCE, OutputKind.LOGITS, 2),
        (MAP, OutputKind.LOGITS, 1),
        (softmax(MAP, 1), OutputKind.PROBABILITIES, 1),
        (1 / (1 + np.exp(-MAP)), OutputKind.CHANCES, 3),
        (unit(RNG.normal(size=(64, 384))), OutputKind.EMBEDDING, 1),
        (RNG.normal(size=(64, 384)), OutputKind.EMBEDDING, 1),
        (RNG.normal(size=(4, 20, 384)), OutputKind.EMBEDDING, 2),
        (RNG.normal(size=(64, 3)), OutputKind.NUMBERS, 1),
        (RNG.normal(size=(64, 1)) * 100, OutputKind.NUMBERS, 1),
        (RNG.normal(size=(2, 3, 16, 16)), OutputKind.NUMBERS, 3),
        (RNG.integers(0, 9, (64,)), OutputKind.DISCRETE, 0),
    ],
)
def test_kinds(array: Any, kind: OutputKind, axis: int) -> None:
    array = array if array.dtype.kind == "i" else array.astype(np.float32)
    found = recognize([array[:2], array[2:]] if len(array) > 4 else [array])
    assert (found.kind, found.class_axis) == (kind, axis)
    assert found.reason


def test_an_embedding_with_large_dimensions_is_no_classifier() -> None:
    """Some dimensions of language models are always the largest; argmax says nothing then."""
    states = RNG.normal(size=(8, 30, 384)).astype(np.float32)
    states[..., 7] += 40
    assert recognize([states]).kind is OutputKind.EMBEDDING


def test_numbers_that_are_not_finite_are_no_kind_of_probability() -> None:
    array = softmax(LOGITS, 1)
    array[0, 0] = np.nan
    assert recognize([array]).kind is not OutputKind.PROBABILITIES


def test_padding_is_found_by_shape_content_and_name() -> None:
    ids = RNG.integers(0, 99, (2, 7))
    mask = np.ones((2, 7), np.int64)
    shapes = [(2, 7, 384)]
    assert recognize_mask([{"input_ids": ids, "attention_mask": mask}], shapes) == "attention_mask"
    assert recognize_mask([{"input_ids": ids}], shapes) is None
    assert recognize_mask([{"mask_ids": ids}], shapes) is None
    assert recognize_mask([{"attention_mask": mask}], [(2, 9, 384)]) is None
