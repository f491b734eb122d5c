"""One step of a training: batches, their gradients, and what the optimizer makes of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxopt.training.cache import TeacherOutputs
from onnxopt.training.data import Batch
from onnxopt.training.feeders import Feeder
from onnxopt.training.masks import Masks
from onnxopt.training.objective import LossParts, Objective
from onnxopt.training.optimizer import adam_w, set_rate
from onnxopt.training.parallel import Processes
from onnxopt.training.score import Score, ScoreKeeper
from onnxopt.training.settings import TrainingSettings

__all__ = ["Augment", "NotFiniteError", "Stepper"]

Arrays = dict[str, np.ndarray[Any, Any]]
#: Changes a feed at random, and its labels where that is needed; mirrored images, for example.
Augment = Callable[[Batch, np.random.Generator], Batch]

#: Names at most so many parameters or samples in a message.
_MOST_NAMED = 3


class NotFiniteError(Exception):
    """Says what is no longer finite."""


class Stepper:
    """Takes the steps of a training, and judges what has come of them.

    Args:
        student: A module that takes inputs by name and gives outputs by name.
        parameters: Those of it that are trained, by name.
        extra: Modules that are trained beside the student and thrown away.
        masks: What stays zero.
        objective: What is minimized.
        teacher: Its outputs.
        feeder: Where batches come from.
        settings: How to train.
        recall: Whether the teacher's outputs are worth remembering.
        augment: Changes the feeds that are trained on; the teacher sees the changed ones, too.
        penalty: Something to add to the loss of every step.
        scales: Names of parameters that are scales of quantizers.
        few_values: Within it weights have the few values that they are to have.
        processes: The processes that train together.

    Attributes:
        optimizer: The one of the training that was begun last.
    """

    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        student: nn.Module,
        parameters: Mapping[str, Tensor],
        extra: nn.Module,
        masks: Masks,
        objective: Objective,
        teacher: TeacherOutputs,
        feeder: Feeder,
        settings: TrainingSettings,
        *,
        recall: bool,
        augment: Augment | None,
        penalty: Callable[[], Tensor] | None,
        scales: Iterable[str],
        few_values: contextlib.AbstractContextManager[Any],
        processes: Processes,
    ) -> None:
        self._student, self._parameters, self._extra = student, parameters, extra
        self._masks, self._objective, self._teacher = masks, objective, teacher
        self._feeder, self._settings, self._recall = feeder, settings, recall
        self._augment, self._penalty, self._scales = augment, penalty, frozenset(scales)
        self._few_values, self._processes = few_values, processes
        self._module = student

    def join(self) -> None:
        """From here on gradients are those of all processes."""
        self._module = self._processes.wrap(self._student)

    def begin(self) -> None:
        """Start with an optimizer that has seen nothing, fit to the parameters as they are now."""
        self.optimizer = adam_w(
            self._parameters, self._extra.parameters(), self._settings.weight_decay, self._scales
        )

    def take(self, step: int, rate: float) -> float:
        """Take a step.

        Args:
            step: Its number, which chooses the samples.
            rate: The relative learning rate.

        Returns:
            The loss, over all processes.

        Raises:
            NotFiniteError: When the loss or a gradient is not, in all processes alike. The
                student is as it was then.
        """
        batches, count = self._feeder.step(step)
        generator = np.random.default_rng((self._settings.seed, 1, step, self._processes.rank))
        self._module.train()
        self._extra.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self._few_values:
            total = self._gradients(batches, count, generator)
        self._masks.mask_gradients()
        everything = [*self._parameters.values(), *self._extra.parameters()]
        norm = nn.utils.get_total_norm([each.grad for each in everything if each.grad is not None])
        if not math.isfinite(float(norm)):
            raise NotFiniteError(self._infinite_gradients())
        nn.utils.clip_grads_with_norm_(everything, self._settings.clip, norm)
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        self._masks.apply()
        return total

    def score(self) -> Score:
        """Judge the student, with the values it has now, on the held-out samples.

        Returns:
            The score, of which other processes than the first know nothing.
        """
        keeper = ScoreKeeper(self._objective)
        if self._processes.is_first:
            self._student.eval()
            self._extra.eval()
            with torch.no_grad():
                for batch in self._feeder.held_out():
                    needed = self._objective.needs_teacher
                    wanted = self._teacher.of_held_out(batch) if needed else {}
                    parts, student, teacher = self._loss(self._student, batch, wanted)
                    keeper.add(student, teacher, batch, float(parts.total))
        return keeper.score()

    def _gradients(self, batches: list[Batch], count: int, generator: np.random.Generator) -> float:
        """Add up the gradients of batches; give the loss over all processes."""
        total, wrong = 0.0, None
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            alone = contextlib.nullcontext() if last else self._alone()
            with alone:
                try:
                    loss = self._loss_of(batch, batch.size / count, generator, penalize=last)
                except NotFiniteError as error:
                    wrong = wrong or error
                if last:  # processes wait for each other in its backward pass
                    self._stop_together(wrong)
                if wrong is None:
                    total += float(loss.detach())
                    (loss * self._processes.count).backward()
        return self._processes.sum(total)

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        return self._processes.unsynchronized(self._module)

    def _stop_together(self, wrong: NotFiniteError | None) -> None:
        if self._processes.sum(float(wrong is not None)):
            raise wrong or NotFiniteError("the loss of another process is no longer finite")

    def _loss_of(
        self, batch: Batch, share: float, generator: np.random.Generator, *, penalize: bool
    ) -> Tensor:
        """A batch's part of the loss."""
        if self._augment is not None:
            batch = self._augment(batch, generator)
        needed = self._objective.needs_teacher
        wanted = self._teacher.of(batch, recall=self._recall) if needed else {}
        parts = self._loss(self._module, batch, wanted)[0]
        loss = parts.total * share
        if penalize and self._penalty is not None:
            # Processes are averaged, and each adds all of the penalty.
            loss = loss + self._penalty() / self._processes.count
        if not math.isfinite(float(loss.detach())):
            raise NotFiniteError(_not_finite(parts, batch))
        return loss

    def _loss(
        self, module: nn.Module, batch: Batch, wanted: Arrays
    ) -> tuple[LossParts, dict[str, Tensor], dict[str, Tensor]]:
        """The loss of one batch, and the outputs of student and teacher."""
        teacher = {name: _tensor(array) for name, array in wanted.items()}
        feed = {name: _tensor(array) for name, array in batch.feed.items()}
        low = self._settings.bfloat16 and torch.is_grad_enabled()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            student: dict[str, Tensor] = module(feed)
        return self._objective(student, teacher, batch), student, teacher

    def _infinite_gradients(self) -> str:
        wrong = [
            name
            for name, each in self._parameters.items()
            if each.grad is not None and not bool(torch.isfinite(each.grad).all())
        ]
        named = ", ".join(f"'{name}'" for name in wrong[:_MOST_NAMED])
        return f"the gradient became NaN or infinite in {named or 'a projection'}"


def _not_finite(parts: LossParts, batch: Batch) -> str:
    for name, array in batch.feed.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"input '{name}' holds NaN or infinity in samples {_few(batch.samples)}"
    wrong = [name for name, part in parts.parts.items() if not bool(torch.isfinite(part.detach()))]
    what = f"the loss of {wrong[0]}" if wrong else "the loss"
    return f"{what} became {float(parts.total.detach())} on samples {_few(batch.samples)}"


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.array(array, order="C", copy=not array.flags.writeable or None))


def _few(numbers: Iterable[int]) -> str:
    chosen = list(numbers)
    text = ", ".join(str(each) for each in chosen[:_MOST_NAMED])
    return text + (", ..." if len(chosen) > _MOST_NAMED else "") if chosen else "without numbers"
