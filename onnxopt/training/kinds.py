"""What an output is: logits, probabilities, an embedding, a map.

Found out from the teacher's numbers, since names say nothing, and said in the report, so that a
user can say otherwise.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["OutputKind", "Recognized", "recognize", "recognize_mask", "rows"]

#: Probabilities sum to one this closely; float32 softmax over 100,000 classes does.
_SUM_TOLERANCE = 1e-3
#: An embedding counts as normalized when its length is this close to one.
_LENGTH_TOLERANCE = 1e-2
#: Softmax of a trained classifier's logits gives its first choice at least this on average, and
#: more where chance alone gives it much: so much more, divided by the number of classes.
_CONFIDENT = 0.5
_CHANCE = 0.8
#: Of the classes that the rows could show, one in so many is the answer of some row.
_LEAST_ANSWERS = 20
#: Embeddings are at least so wide.
_LEAST_EMBEDDING_WIDTH = 16
#: So many rows are looked at.
_MOST_ROWS = 20_000


class OutputKind(enum.StrEnum):
    """What the numbers of an output mean; it decides the loss and the score."""

    #: Before a softmax over a class axis.
    LOGITS = "logits"
    #: After it: not negative, and one in sum.
    PROBABILITIES = "probabilities"
    #: Logarithms of those.
    LOG_PROBABILITIES = "log-probabilities"
    #: Each between 0 and 1 on its own, as after a sigmoid.
    CHANCES = "chances"
    #: A direction in a space of many dimensions.
    EMBEDDING = "embedding"
    #: Any other numbers.
    NUMBERS = "numbers"
    #: Not differentiable: indices, counts, text. It is compared, not trained.
    DISCRETE = "discrete"

    @property
    def has_classes(self) -> bool:
        """Whether the largest along the class axis is the model's answer."""
        return self in (self.LOGITS, self.PROBABILITIES, self.LOG_PROBABILITIES)


@dataclasses.dataclass(frozen=True)
class Recognized:
    """An output's kind and why it was taken for that.

    Attributes:
        kind: The kind.
        class_axis: Axis of classes or of an embedding's dimensions, from 0.
        reason: One phrase for the report.
        variance: Variance of the teacher's numbers; 1 where they do not vary.
    """

    kind: OutputKind
    class_axis: int
    reason: str
    variance: float = 1.0


def rows(array: Any, class_axis: int) -> Any:
    """A tensor or array as [rows, width], its class axis last. A scalar per row has width 1."""
    if array.ndim < 2:
        return array.reshape(-1, 1)
    moved = (
        np.moveaxis(array, class_axis, -1)
        if isinstance(array, np.ndarray)
        else (array.movedim(class_axis, -1))
    )
    return moved.reshape(-1, moved.shape[-1])


def recognize(outputs: Sequence[np.ndarray[Any, Any]]) -> Recognized:
    """Tell the kind of an output from what the teacher gave on several feeds.

    Where the numbers allow no better guess it is `OutputKind.NUMBERS`, whose loss is right for any
    of them, if not always the best.
    """
    first = outputs[0]
    if first.dtype.kind != "f" and str(first.dtype) != "bfloat16":
        return Recognized(OutputKind.DISCRETE, 0, f"{first.dtype} has no gradient")
    numbers = np.concatenate([np.asarray(each, np.float64).reshape(-1) for each in outputs])
    finite = numbers[np.isfinite(numbers)]
    variance = float(finite.var()) if finite.size else 0.0
    variance = variance if variance > 0 else 1.0
    last = max(first.ndim - 1, 0)
    if first.ndim >= 2 and finite.size == numbers.size and numbers.size:
        # Images and maps have their channels after the batch, all else has them last.
        for axis in dict.fromkeys((1, last) if first.ndim >= 4 else (last, 1)):
            if len({each.shape[axis] for each in outputs}) == 1:
                found = _with_classes(outputs, axis)
                if found is not None:
                    return dataclasses.replace(found, variance=variance)
    if finite.size and finite.min() >= 0.0 and finite.max() <= 1.0:
        return Recognized(OutputKind.CHANCES, last, "all numbers lie between 0 and 1", variance)
    if 2 <= first.ndim <= 3 and first.shape[-1] >= _LEAST_EMBEDDING_WIDTH:
        wide = _some_rows(outputs, last)
        lengths = np.linalg.norm(wide, axis=1)
        if np.all(np.abs(lengths - 1) < _LENGTH_TOLERANCE):
            return Recognized(OutputKind.EMBEDDING, last, "vectors of length 1", variance)
        return Recognized(
            OutputKind.EMBEDDING, last, f"vectors of {wide.shape[1]} numbers", variance
        )
    return Recognized(OutputKind.NUMBERS, last, "no sign of anything else", variance)


def recognize_mask(
    feeds: Sequence[Mapping[str, np.ndarray[Any, Any]]], shapes: Sequence[tuple[int, ...]]
) -> str | None:
    """The input that says which positions of a sequence output are padding.

    It has one number for each position of an output ``[batch, positions, width]``, only zeros and
    ones, and "mask" in its name.

    Args:
        feeds: Some feeds.
        shapes: The output's shape for each.
    """
    for name in feeds[0]:
        if "mask" in name.lower() and all(
            len(shape) == 3
            and feed[name].shape == shape[:2]
            and bool(np.isin(feed[name], (0, 1)).all())
            for feed, shape in zip(feeds, shapes, strict=True)
        ):
            return name
    return None


def _with_classes(outputs: Sequence[np.ndarray[Any, Any]], axis: int) -> Recognized | None:
    """A kind that has classes along ``axis``, or None."""
    wide = _some_rows(outputs, axis)
    if wide.shape[1] < 2:
        return None
    if wide.min() >= 0.0 and np.all(np.abs(wide.sum(axis=1) - 1) < _SUM_TOLERANCE):
        return Recognized(OutputKind.PROBABILITIES, axis, f"sums to 1 along axis {axis}")
    highest = wide.max(axis=1, keepdims=True)
    exponentials = np.exp(wide - highest)
    sums = exponentials.sum(axis=1)
    if wide.max() <= 0.0 and np.all(np.abs(sums * np.exp(highest[:, 0]) - 1) < _SUM_TOLERANCE):
        return Recognized(
            OutputKind.LOG_PROBABILITIES, axis, f"exponentials sum to 1 along axis {axis}"
        )
    confidence = float((1 / sums).mean())
    answers = len(np.unique(wide.argmax(axis=1)))
    # An embedding with some large dimensions looks confident, too, but always of the same "class".
    sure = confidence >= _CONFIDENT + _CHANCE / wide.shape[1]
    if sure and answers >= max(2, min(wide.shape) // _LEAST_ANSWERS):
        return Recognized(
            OutputKind.LOGITS,
            axis,
            f"its softmax along axis {axis} is sure of {confidence:.0%} on average",
        )
    return None


def _some_rows(outputs: Sequence[np.ndarray[Any, Any]], axis: int) -> np.ndarray[Any, Any]:
    share = max(1, _MOST_ROWS // len(outputs))
    parts = []
    for each in outputs:
        wide = rows(np.asarray(each, np.float64), axis)
        parts.append(wide[:: max(1, len(wide) // share)])
    return np.concatenate(parts)
