"""One number for how much a model holds to the first model's answer, run on covered inputs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxopt.accuracy import decision_kind
from onnxopt.data import Feed
from onnxopt.errors import OptionError, RuntimeCrashError, RuntimeRefusalError
from onnxopt.explain.segments import Array, Segments
from onnxopt.runtime.worker import Worker

__all__ = ["Answer", "Scorer", "answer_of"]

#: So many covered copies run at once at most, in at most so many bytes.
_BATCH = 32
_BATCH_BYTES = 64 * 2**20
#: Outputs of a batch may differ from those of single runs by this share of their range.
_BATCH_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the first model answers to a sample, as a direction in its output.

    Attributes:
        output: Name of the output.
        weights: The score of an output is the sum of its elements times these; for classes, 1 at
            each class that was chosen, else the output itself, of length 1.
        axis: Axis of the classes, where the output is a decision between classes.
    """

    output: str
    weights: NDArray[np.float64]
    axis: int | None

    def score(self, output: Array) -> float:
        """How much of the answer is in an output."""
        return float((output.astype(np.float64) * self.weights).sum())

    def same_decision(self, one: Array, other: Array) -> bool | None:
        """Whether two outputs choose the same classes; None where nothing is chosen."""
        if self.axis is None:
            return None
        return bool(np.array_equal(one.argmax(self.axis), other.argmax(self.axis)))


def answer_of(name: str, outputs: Sequence[Array], index: int) -> Answer:
    """The answer to one of several samples.

    Args:
        name: Name of the output.
        outputs: The output for each sample.
        index: Which one.
    """
    kind = decision_kind(outputs)
    output = outputs[index].astype(np.float64)
    if kind is not None and kind[0] in ("top-1", "largest"):
        axis = kind[1]
        chosen = np.expand_dims(output.argmax(axis), axis)
        weights = np.zeros_like(output)
        np.put_along_axis(weights, chosen, 1.0, axis)
        return Answer(name, weights, axis)
    length = float(np.linalg.norm(output))
    return Answer(name, output / length if length else output, None)


class Scorer:
    """Runs one model on covered copies of samples.

    Args:
        worker: Where it runs.
        model: Its path.
        output: Name of the output that counts.
        threads: Threads for one operator.

    Raises:
        RuntimeRefusalError: When the runtime does not take the model.
        OptionError: When it has no such output.
    """

    def __init__(
        self, worker: Worker, model: str | os.PathLike[str], output: str, threads: int
    ) -> None:
        self._worker = worker
        self._info = worker.open(model, threads=threads)
        names = [port.name for port in self._info.outputs]
        if output not in names:
            raise OptionError(f"{model} has no output '{output}' to compare attributions of")
        self._place = names.index(output)
        self._inputs = {port.name for port in self._info.inputs}
        self._batches: bool | None = None

    def close(self) -> None:
        """Let go of the model."""
        self._worker.close(self._info.session)

    def output(self, feed: Feed) -> Array:
        """The output for a feed."""
        known = {name: value for name, value in feed.items() if name in self._inputs}
        return np.asarray(self._worker.run(self._info.session, known)[self._place])

    def scores(
        self, feed: Feed, segments: Segments, kept: NDArray[np.bool_], answer: Answer
    ) -> NDArray[np.float64]:
        """The score of each covered copy.

        Args:
            feed: The sample, alone in its batch.
            segments: Its parts.
            kept: For each copy, whether each part is kept.
            answer: What is scored.
        """
        sample = np.asarray(feed[segments.input])
        most = max(1, min(_BATCH, _BATCH_BYTES // max(1, sample.nbytes)))
        found: list[float] = []
        for start in range(0, len(kept), most):
            copies = segments.covered(sample, kept[start : start + most])
            outputs = self._together(feed, segments.input, copies, answer)
            if outputs is None:
                outputs = [
                    self.output({**feed, segments.input: copies[index : index + 1]})
                    for index in range(len(copies))
                ]
            found.extend(map(answer.score, outputs))
        return np.array(found)

    def _together(self, feed: Feed, name: str, copies: Array, answer: Answer) -> list[Array] | None:
        """The outputs of copies that run as one batch; None where the model cannot do that.

        The first time, what a batch gives is held against what single runs give: in some models the
        samples of a batch influence each other.
        """
        if self._batches is False or len(copies) == 1:
            return None
        batch = {
            key: copies if key == name else np.repeat(np.asarray(value), len(copies), axis=0)
            for key, value in feed.items()
            if key == name or _is_one_sample(value)
        }
        if batch.keys() != feed.keys():
            self._batches = False
            return None
        try:
            output = self.output(batch)
        except RuntimeCrashError:
            raise
        except RuntimeRefusalError:
            self._batches = False
            return None
        if output.shape != (len(copies), *answer.weights.shape[1:]):
            self._batches = False
            return None
        outputs = [output[index : index + 1] for index in range(len(copies))]
        if self._batches is None:
            alone = self.output({**feed, name: copies[-1:]})
            scale = float(np.abs(alone.astype(np.float64)).max(initial=0.0))
            self._batches = bool(
                alone.shape == outputs[-1].shape
                and np.allclose(alone, outputs[-1], rtol=0.0, atol=_BATCH_TOLERANCE * scale)
            )
        return outputs if self._batches else None


def _is_one_sample(value: Any) -> bool:
    array = np.asarray(value)
    return array.ndim > 0 and array.shape[0] == 1
