"""Which batches make up each step: samples in a random order, or what a user's loader gives."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Protocol

import numpy as np

from onnxopt.errors import FeedError, OptionError
from onnxopt.training.data import Batch, TrainingData
from onnxopt.training.parallel import Processes

__all__ = ["Feeder", "LoaderFeeder", "SampleFeeder"]


class Feeder(Protocol):
    """Where batches come from.

    Attributes:
        steps_per_epoch: Steps in which everything is gone through once.
        data: The samples by number; None where they have none.
    """

    steps_per_epoch: int
    data: TrainingData | None

    def step(self, step: int) -> tuple[list[Batch], int]:
        """The batches of a step that are this process's, and the samples of all processes'."""
        ...

    def held_out(self) -> Iterable[Batch]:
        """Batches to judge with; the same each time."""
        ...


class SampleFeeder:
    """Takes samples in a random order that depends on the seed and the epoch alone.

    Args:
        data: The samples; some are held out.
        batch_size: Samples for a step, of all processes together. A last batch of an epoch that
            would not be full is left out: it would count for more than it is.
        seed: Fixes the order.
        processes: The processes that share each step.
        most_held_out: Judge with at most so many of those that are held out.

    Raises:
        OptionError: When a batch is too small for the processes.
        FeedError: When there are too few samples for them.
    """

    def __init__(
        self,
        data: TrainingData,
        batch_size: int,
        seed: int,
        processes: Processes,
        most_held_out: int | None = None,
    ) -> None:
        self.data: TrainingData | None = data
        self._samples, self._size, self._seed, self._processes = data, batch_size, seed, processes
        self._training, kept_back = data.split()
        self.held_out_numbers = _spread(kept_back, most_held_out)
        count = len(self._training)
        if batch_size < processes.count:
            raise OptionError(
                f"{processes.count} processes cannot share batches of {batch_size}; give more"
            )
        if count < processes.count:
            raise FeedError(f"{count} samples are too few for {processes.count} processes")
        self.steps_per_epoch = max(1, count // batch_size)
        self._order: np.ndarray[Any, Any] | None = None
        self._order_epoch = -1

    def step(self, step: int) -> tuple[list[Batch], int]:
        """A slice of the epoch's order."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order_epoch != epoch:
            generator = np.random.default_rng((self._seed, 0, epoch))
            self._order, self._order_epoch = generator.permutation(self._training), epoch
        chosen = self._order[position * self._size : (position + 1) * self._size].tolist()
        return self._samples.batches(self._processes.share(chosen)), len(chosen)

    def held_out(self) -> list[Batch]:
        """The held-out samples."""
        return self._samples.batches(self.held_out_numbers, self._size)


class LoaderFeeder:
    """Takes a user's batches as they come, such as those of a ``torch.utils.data.DataLoader``.

    A batch is a dict of inputs by name; or a sequence of inputs in order; or one input. With labels
    the last of a sequence, or the dict's entry of the name that is given, is the label.

    Args:
        loader: Gives batches, anew each time it is iterated over.
        held_out: Gives those to judge with.
        inputs: Names of the inputs, in order.
        labels: Whether there are labels, or their name in a dict.
        steps_per_epoch: How many batches there are, if the loader has no length.

    Raises:
        FeedError: When the loader is empty, or gives something else.
    """

    data: TrainingData | None = None

    def __init__(
        self,
        loader: Iterable[Any],
        held_out: Iterable[Any],
        inputs: Sequence[str],
        *,
        labels: bool | str = False,
        steps_per_epoch: int | None = None,
    ) -> None:
        self._loader, self._held_out = loader, held_out
        self._inputs, self._labels = tuple(inputs), labels
        length = steps_per_epoch
        if length is None and isinstance(loader, Sized):
            length = len(loader)
        if length is None:
            raise OptionError("the loader has no length: say how many steps an epoch has")
        if not length:
            raise FeedError("the loader gives no batches")
        self.steps_per_epoch = length
        self._iterator: Iterator[Any] = iter(())
        self._next = -1

    def step(self, step: int) -> tuple[list[Batch], int]:
        """The loader's next batch; after an interruption those before it are passed over."""
        position = step % self.steps_per_epoch
        if position == 0 or self._next != step:
            self._iterator = itertools.islice(iter(self._loader), position, None)
        try:
            batch = self._batch(next(self._iterator))
        except StopIteration:
            raise FeedError(
                f"the loader ended after {position} of {self.steps_per_epoch} batches"
            ) from None
        self._next = step + 1
        return [batch], batch.size

    def held_out(self) -> Iterator[Batch]:
        """The batches to judge with."""
        return (self._batch(each) for each in self._held_out)

    def _batch(self, given: Any) -> Batch:
        if isinstance(given, Mapping):
            named = {str(name): _array(value) for name, value in given.items()}
            label = named.pop(self._labels, None) if isinstance(self._labels, str) else None
            missing = [name for name in self._inputs if name not in named]
            if missing or (self._labels and label is None):
                wanted = [*missing, *([str(self._labels)] if self._labels else [])]
                raise FeedError(f"a batch of the loader has no {', '.join(wanted)}")
            return Batch({name: named[name] for name in self._inputs}, (), label)
        items = list(given) if isinstance(given, list | tuple) else [given]
        expected = len(self._inputs) + bool(self._labels)
        if len(items) != expected:
            raise FeedError(f"a batch of the loader has {len(items)} parts, not {expected}")
        arrays = [_array(each) for each in items]
        label = arrays.pop() if self._labels else None
        return Batch(dict(zip(self._inputs, arrays, strict=True)), (), label)


def _spread(numbers: list[int], most: int | None) -> list[int]:
    """So many of the numbers, evenly."""
    if most is None or len(numbers) <= most:
        return numbers
    return [numbers[index * len(numbers) // most] for index in range(most)]


def _array(value: Any) -> np.ndarray[Any, Any]:
    """A tensor or array as an array."""
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
