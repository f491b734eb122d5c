"""Samples for training: in any order, in batches, with labels where there are some.

Samples of one shape are stacked into one batch where the model allows it, which is found out by
running it. A step whose samples have several shapes has several batches, and their gradients add
up; so no sample is ever padded or cut.
"""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.data import FeedSource, required_inputs
from onnxopt.errors import FeedError, OnnxoptError
from onnxopt.training.store import SampleStore
from onnxopt.training.teacher import Teacher

__all__ = ["Batch", "Stacking", "TrainingData", "find_stacking", "read_training_data"]

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

#: Padding of labels that are shorter than others of their batch.
NO_LABEL = -1
#: Outputs of a stacked run may be so far off, relative to their largest number.
_STACKING_TOLERANCE = 1e-2
#: At most this share of the samples is held out, and at most so many.
_HELD_OUT_EVERY = 10
_MOST_HELD_OUT = 2_000


@dataclasses.dataclass(frozen=True)
class Batch:
    """What the model is run with once.

    Attributes:
        feed: Inputs by name.
        samples: Numbers of the samples in it, in order.
        labels: Their labels, stacked along the first axis; None when there are none.
    """

    feed: Arrays
    samples: tuple[int, ...] = ()
    labels: Array | None = None

    @property
    def size(self) -> int:
        """How many samples it holds; without numbers, the rows of its first input."""
        if self.samples:
            return len(self.samples)
        first = next(iter(self.feed.values()), None)
        return max(1, len(first)) if first is not None and first.ndim else 1


@dataclasses.dataclass(frozen=True)
class Stacking:
    """How samples are stacked.

    Attributes:
        axes: For each output the axis along which it grows with the samples.
    """

    axes: Mapping[str, int]

    def split(self, output: str, array: Array, counts: Sequence[int]) -> list[Array]:
        """The part of an output that belongs to each sample."""
        ends = np.cumsum(counts)[:-1]
        return np.split(array, ends, axis=self.axes[output])

    def join(self, output: str, parts: Sequence[Array]) -> Array:
        """The inverse of `split`."""
        return np.concatenate(parts, axis=self.axes[output])


class TrainingData:
    """Samples with or without labels.

    Args:
        samples: Feeds by number, each array with its batch axis.
        labels: The label of each, with a batch axis as well; None when there are none.

    Attributes:
        stacking: How samples are stacked; None when each is run on its own. Set by the distiller.

    Raises:
        FeedError: When there is no sample, or there are not as many labels.
    """

    def __init__(self, samples: SampleStore, labels: Sequence[Array] | None = None) -> None:
        if not len(samples):
            raise FeedError("there is no sample to train on")
        if labels is not None and len(labels) != len(samples):
            raise FeedError(f"there are {len(labels)} labels for {len(samples)} samples")
        self._samples = samples
        self.labels = labels
        self.stacking: Stacking | None = None

    @classmethod
    def of(
        cls, feeds: Iterable[Mapping[str, Any]], labels: Iterable[Any] | None = None
    ) -> TrainingData:
        """Data from feeds in memory; see the class."""
        store = SampleStore()
        for feed in feeds:
            store.append({name: np.asarray(value) for name, value in feed.items()})
        return cls(store, None if labels is None else [np.asarray(each) for each in labels])

    def __len__(self) -> int:
        return len(self._samples)

    def feed(self, number: int) -> Arrays:
        """The inputs of one sample."""
        return self._samples[number]

    def split(self) -> tuple[list[int], list[int]]:
        """Numbers of the samples to train on and of those that are held out, spread evenly.

        With fewer than ten there is nothing to hold out, and both are all of them.
        """
        count = len(self)
        if count < _HELD_OUT_EVERY:
            return list(range(count)), list(range(count))
        kept_back = min(count // _HELD_OUT_EVERY, _MOST_HELD_OUT)
        held_out = {int((each + 0.5) * count / kept_back) for each in range(kept_back)}
        return [each for each in range(count) if each not in held_out], sorted(held_out)

    def batches(self, numbers: Sequence[int], most: int | None = None) -> list[Batch]:
        """Samples as batches of equal shapes.

        Args:
            numbers: The samples.
            most: At most so many in one batch.
        """
        groups: dict[Any, list[int]] = {}
        for number in numbers:
            feed = self.feed(number)
            shapes = tuple((name, array.shape, str(array.dtype)) for name, array in feed.items())
            key = shapes if self.stacking is not None else number
            groups.setdefault(key, []).append(number)
        found: list[Batch] = []
        for group in groups.values():
            step = most or len(group)
            for start in range(0, len(group), step):
                found.append(self._batch(group[start : start + step]))
        return found

    def rows(self, number: int) -> int:
        """Size of the batch axis of one sample."""
        return next((len(array) for array in self.feed(number).values() if array.ndim), 1)

    def _batch(self, numbers: Sequence[int]) -> Batch:
        feeds = [self.feed(number) for number in numbers]
        feed = feeds[0] if len(feeds) == 1 else stack_feeds(feeds)
        labels = self.labels
        if labels is not None:
            return Batch(feed, tuple(numbers), _stack_labels([labels[each] for each in numbers]))
        return Batch(feed, tuple(numbers))


def read_training_data(
    model: ir.Model, path: pathlib.Path, labels: str | None = None
) -> TrainingData:
    """Read the samples of a file or folder.

    Args:
        model: Names the inputs.
        path: A folder of ``.npz`` files, one feed each, or one ``.npz`` of stacked samples.
        labels: Name of the array of labels, beside those of the inputs.

    Raises:
        FeedError: When the data does not fit the model, there is none, or there are no labels.
    """
    if not required_inputs(model):
        raise FeedError("the model has no inputs, so there is nothing to train with")
    store = SampleStore()
    for feed in FeedSource(model, path).read():
        store.append(feed)
    if not len(store):
        raise FeedError(f"{path} holds no samples")
    return TrainingData(store, None if labels is None else _labels(path, labels, store))


def find_stacking(teacher: Teacher, first: Arrays, second: Arrays) -> Stacking | None:
    """Run a teacher on two samples alone and together, to see whether and how they stack.

    Args:
        teacher: The teacher.
        first: A sample.
        second: Another of the same shapes, or the same again.

    Returns:
        The axis of each output, or None when stacked samples are refused or give other outputs:
        because the batch is fixed, is not the first axis, or its members depend on each other.
    """
    if any(array.ndim == 0 for array in first.values()):
        return None
    alone = [teacher.outputs(first), teacher.outputs(second)]
    try:
        together = teacher.outputs(stack_feeds([first, second]))
    except OnnxoptError:
        return None
    axes: dict[str, int] = {}
    for name, array in together.items():
        one, other = (outputs[name] for outputs in alone)
        grown = [
            axis
            for axis in range(array.ndim)
            if array.ndim == one.ndim == other.ndim
            and array.shape[axis] == one.shape[axis] + other.shape[axis]
        ]
        if len(grown) != 1:
            return None
        try:
            wanted = np.concatenate([one, other], axis=grown[0])
        except ValueError:
            return None
        if wanted.shape != array.shape or not _alike(wanted, array):
            return None
        axes[name] = grown[0]
    return Stacking(axes)


def stack_feeds(feeds: Sequence[Arrays]) -> Arrays:
    """Several feeds of equal shapes as one, along the first axis."""
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def _alike(wanted: Array, given: Array) -> bool:
    if wanted.dtype.kind not in "f":
        return bool(np.mean(wanted != given) <= _STACKING_TOLERANCE) if wanted.size else True
    finite = np.isfinite(wanted) & np.isfinite(given)
    if not finite.any():
        return True
    most = float(np.abs(wanted[finite]).max())
    return float(np.abs(wanted[finite] - given[finite]).max()) <= _STACKING_TOLERANCE * most


def _stack_labels(labels: Sequence[Array]) -> Array:
    """Labels along the first axis; texts of several lengths are padded with -1."""
    if len(labels) == 1:
        return labels[0]
    trailing = {label.shape[1:] for label in labels}
    if len(trailing) > 1 and all(label.ndim == 2 for label in labels):
        longest = max(label.shape[1] for label in labels)
        labels = [
            np.pad(label, ((0, 0), (0, longest - label.shape[1])), constant_values=NO_LABEL)
            for label in labels
        ]
    return np.concatenate(labels)


def _labels(path: pathlib.Path, name: str, samples: SampleStore) -> list[Array]:
    """The labels of each sample, with a batch axis."""
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        return [
            _with_batch_axis(file, _array_of(file, name), samples[number])
            for number, file in enumerate(files)
        ]
    array = _array_of(path, name)
    step = len(array) // len(samples) if array.ndim else 0
    if not step or step * len(samples) != len(array):
        count = len(array) if array.ndim else 1
        raise FeedError(f"{path} has {count} labels '{name}' for {len(samples)} samples")
    return [array[start : start + step] for start in range(0, len(array), step)]


def _with_batch_axis(file: pathlib.Path, label: Array, feed: Arrays) -> Array:
    """The label of a file whose arrays hold one sample or a batch of them."""
    counts = {len(array) if array.ndim else 1 for array in feed.values()}
    if label.ndim and len(label) in counts:
        return label
    if 1 in counts or label.ndim == 0:
        return label[np.newaxis]
    raise FeedError(f"{file} has {len(label)} labels for a batch of {max(counts)}")


def _array_of(path: pathlib.Path, name: str) -> Array:
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            array = archive[name] if name in names else None
    except Exception as error:  # zipfile, numpy and the OS each have their own
        raise FeedError(f"{path} is not a readable .npz file: {error}") from error
    if array is None:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"is it '{close[0]}'?" if close else f"it has {', '.join(names) or 'nothing'}"
        raise FeedError(f"{path} has no array '{name}' of labels; {hint}")
    return np.asarray(array)
