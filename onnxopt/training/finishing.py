"""What comes after the training: ranges chosen anew, the file written, and that file judged."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.accuracy import Fidelity, fidelity
from onnxopt.model import ExternalData, bytes_on_disk, copy, save, stage
from onnxopt.training.cache import TeacherOutputs
from onnxopt.training.data import Batch
from onnxopt.training.judging import judge
from onnxopt.training.objective import Objective
from onnxopt.training.recalibration import recalibrate
from onnxopt.training.score import Score
from onnxopt.training.teacher import OnnxTeacher

__all__ = ["Finished", "Finisher"]

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Finished:
    """What came of a training.

    Attributes:
        before: The student as it was.
        after: The file that was written.
        fidelity: How true that file's outputs are to the teacher's.
        changed: What of the student was changed; nothing where training did not help.
        bytes: Size of the file.
    """

    before: Score
    after: Score
    fidelity: Fidelity
    changed: list[str]
    bytes: int


class Finisher:
    """Judges models on held-out samples and writes the best.

    Args:
        student: Path of the student as it was.
        teacher: Gives the answers that are wanted.
        reference: The student as it was, running.
        objective: Says how outputs are compared.
        batches: Held-out samples.
        threads: Threads for one operator.
        external_data: How the file is written.

    Attributes:
        notes: Sentences for the user.
    """

    def __init__(
        self,
        student: pathlib.Path,
        teacher: OnnxTeacher,
        reference: OnnxTeacher,
        objective: Objective,
        batches: Sequence[Batch],
        *,
        threads: int,
        external_data: ExternalData,
    ) -> None:
        self.notes: list[str] = []
        self._student, self._reference, self._names = student, reference, teacher.names
        self._objective, self._batches = objective.of_outputs(), batches
        self._threads, self._external_data = threads, external_data
        outputs = TeacherOutputs(teacher, None)
        self._wanted = [outputs.of(batch) for batch in batches]

    def with_new_ranges(
        self, model: ir.Model, changed: list[str], samples: Sequence[Batch]
    ) -> tuple[ir.Model, list[str]]:
        """The model with ranges chosen anew, where that is better; else as it was.

        Args:
            model: The trained student.
            changed: What was changed in it.
            samples: What to choose ranges by.
        """
        other = model.clone()
        moved = recalibrate(other, list(samples))
        if not moved:
            return model, changed
        scores = []
        for each in (model, other):
            with _staged(each, None, self._external_data) as (path, _):
                scores.append(self._judged(path)[0])
        before, after = scores
        told = f"{len(moved)} scales and biases chosen anew after the training"
        if not after.is_better_than(before):
            self.notes.append(f"{told} were no better ({before.text}, {after.text}) and left out.")
            return model, changed
        self.notes.append(f"{told}: {before.text} before, {after.text} after.")
        return other, list(dict.fromkeys([*changed, *moved]))

    def write(self, model: ir.Model, changed: list[str], target: pathlib.Path | None) -> Finished:
        """Write the result beside its place, judge that very file, and move it there.

        Args:
            model: The trained student.
            changed: What was changed in it.
            target: Where to write it; None to write nothing.
        """
        with _staged(model, target, self._external_data) as (path, commit):
            after, given = self._judged(path)
            before, old = judge(self._reference, self._objective, self._batches, self._wanted)
            size = bytes_on_disk(path)
            if changed and not after.is_better_than(before):
                self.notes.append(
                    f"Training did not help ({before.text} before, {after.text} after): the result "
                    "is the student as it was."
                )
                changed, after, given, size = [], before, old, bytes_on_disk(self._student)
            if target is not None:
                if changed:
                    commit()
                else:
                    copy(self._student, target)
        found = fidelity(self._listed(self._wanted), self._listed(given), self._names)
        return Finished(before, after, found, changed, size)

    def _judged(self, path: pathlib.Path) -> tuple[Score, list[Arrays]]:
        with OnnxTeacher(path, threads=self._threads) as opened:
            return judge(opened, self._objective, self._batches, self._wanted)

    def _listed(self, outputs: Sequence[Arrays]) -> list[list[Any]]:
        return [[each[name] for name in self._names] for each in outputs]


@contextlib.contextmanager
def _staged(
    model: ir.Model, target: pathlib.Path | None, external_data: ExternalData
) -> Iterator[tuple[pathlib.Path, Callable[[], None]]]:
    """A model written beside its target (or somewhere, without one), and how to move it there."""
    if target is None:
        with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
            path = pathlib.Path(folder) / "model.onnx"
            save(model, path, external_data)
            yield path, lambda: None
        return
    staged = stage(model, target, external_data)
    try:
        yield staged.path, staged.commit
    finally:
        staged.discard()
