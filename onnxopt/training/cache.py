"""The teacher's outputs, computed once for each sample while they fit in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxopt.training.data import Batch, TrainingData
from onnxopt.training.teacher import Teacher

__all__ = ["TeacherOutputs"]

Arrays = dict[str, np.ndarray[Any, Any]]


#: Samples are computed in these groups, whatever the order in which they are asked for: so their
#: numbers are the same to the bit when an interrupted training goes on.
_GROUP = 64
#: So many samples tell how large the outputs of all will be.
_LOOKED_AT = 16


class TeacherOutputs:
    """Asks a teacher, and remembers what it said if all of it fits in memory.

    Args:
        teacher: The teacher.
        data: The samples; its stacking says how a batch's outputs are parted. None for batches
            whose samples have no numbers, which are computed each time.
        memory_bytes: Remember so much; if the samples give more, each is computed when needed.

    Attributes:
        computed: Samples that the teacher was run on.
    """

    def __init__(
        self, teacher: Teacher, data: TrainingData | None, memory_bytes: int = 2 << 30
    ) -> None:
        self._teacher = teacher
        self._data = data
        self._limit = memory_bytes
        self._known: dict[int, Arrays] = {}
        self._batches: dict[tuple[int, ...], Arrays] = {}
        self._fits: bool | None = None
        self.computed = 0

    def of(self, batch: Batch, *, recall: bool = True) -> Arrays:
        """The outputs for a batch.

        Args:
            batch: The batch.
            recall: Whether to remember them: no for feeds that are not those of the samples,
                because they were changed, nor for what will not be asked again.
        """
        if not recall or not batch.samples or not self._remembers():
            return self._run(batch)
        for number in batch.samples:
            if number not in self._known:
                self._compute(number - number % _GROUP)
        return self._join([self._known[number] for number in batch.samples])

    def of_held_out(self, batch: Batch) -> Arrays:
        """The outputs for a batch that is asked for again and again as it is."""
        if batch.samples not in self._batches and batch.samples and self._remembers():
            self._batches[batch.samples] = self._run(batch)
        return self._batches[batch.samples] if batch.samples in self._batches else self._run(batch)

    def _remembers(self) -> bool:
        if self._data is None:
            return False
        if self._fits is None:
            first = range(min(_LOOKED_AT, len(self._data)))
            largest = 0
            for batch in self._data.batches(first):
                size = sum(array.nbytes for array in self._run(batch).values())
                largest = max(largest, size // batch.size)
            self._fits = largest * len(self._data) <= self._limit
        return self._fits

    def _run(self, batch: Batch) -> Arrays:
        self.computed += batch.size
        return self._teacher.outputs(batch.feed)

    def _compute(self, start: int) -> None:
        assert self._data is not None
        numbers = range(start, min(start + _GROUP, len(self._data)))
        for batch in self._data.batches(numbers):
            outputs = self._run(batch)
            for number, part in zip(batch.samples, self._split(outputs, batch), strict=True):
                self._known[number] = part

    def _split(self, outputs: Arrays, batch: Batch) -> list[Arrays]:
        if len(batch.samples) == 1:
            return [outputs]
        assert self._data is not None
        assert self._data.stacking is not None
        counts = [self._data.rows(number) for number in batch.samples]
        parts = {
            name: self._data.stacking.split(name, array, counts) for name, array in outputs.items()
        }
        return [
            {name: parts[name][index] for name in outputs} for index in range(len(batch.samples))
        ]

    def _join(self, parts: list[Arrays]) -> Arrays:
        if len(parts) == 1:
            return parts[0]
        assert self._data is not None
        assert self._data.stacking is not None
        stacking = self._data.stacking
        return {name: stacking.join(name, [part[name] for part in parts]) for name in parts[0]}
