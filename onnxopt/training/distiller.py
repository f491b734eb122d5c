"""The training loop: teach a student what its teacher knows, and keep the best that it was."""

from __future__ import annotations

import contextlib
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxopt.errors import OptionError
from onnxopt.training.cache import TeacherOutputs
from onnxopt.training.checkpoints import load_checkpoint, save_checkpoint
from onnxopt.training.data import Batch, TrainingData
from onnxopt.training.feeders import Feeder, SampleFeeder
from onnxopt.training.interruption import InterruptedTrainingError, StopRequest
from onnxopt.training.low_bit import LowBit
from onnxopt.training.masks import Masks
from onnxopt.training.objective import LossParts, Objective
from onnxopt.training.optimizer import adam_w, set_rate
from onnxopt.training.parallel import Processes
from onnxopt.training.progress import Evaluation, Progress, TrainingResult, TrainingState
from onnxopt.training.schedules import PruningSchedule, keep_largest, warm_up_and_cosine
from onnxopt.training.score import Score, ScoreKeeper
from onnxopt.training.settings import TrainingSettings
from onnxopt.training.teacher import Teacher

__all__ = ["Distiller", "Evaluation", "InterruptedTrainingError", "Progress", "TrainingResult"]

Arrays = dict[str, np.ndarray[Any, Any]]
#: Changes a feed at random, and its labels where that is needed; mirrored images, for example.
Augment = Callable[[Batch, np.random.Generator], Batch]

#: Names at most so many parameters in a message.
_MOST_NAMED = 3
#: Judging takes about this share of the time, unless that leaves fewer samples than this.
_JUDGING_SHARE = 0.1
_LEAST_JUDGED = 256


class _NotFiniteError(Exception):
    """Says what is no longer finite."""


class Distiller:
    """Teaches a student.

    Args:
        student: A module that takes inputs by name and gives outputs by name.
        teacher: What it learns from.
        data: The samples, or where batches come from.
        objective: What is minimized.
        settings: How to train.
        pruning: Prune while training; masks then change with the schedule.
        prunable: Names of the parameters that are pruned; those of two or more dimensions whose
            first axis and second are longer than one, when None.
        penalty: Something to add to the loss of every step, such as a group lasso.
        scales: Names of parameters that are scales of quantizers.
        low_bit: Weights that are to have few values.
        augment: Changes the feeds that are trained on; the teacher sees the changed ones, too.
        extra: Modules that are trained beside the student and thrown away.
        checkpoint: File to keep the training's state in; it goes on from there when it is started
            again in the same way. It stays until `forget`.
        mark: What tells one training from another; see `checkpoints.fingerprint`.
        on_progress: Told where it stands.
        processes: The processes that train together.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        data: TrainingData | Feeder,
        objective: Objective,
        settings: TrainingSettings | None = None,
        *,
        pruning: PruningSchedule | None = None,
        prunable: Sequence[str] | None = None,
        penalty: Callable[[], Tensor] | None = None,
        scales: Sequence[str] = (),
        low_bit: LowBit | None = None,
        augment: Augment | None = None,
        extra: nn.Module | None = None,
        checkpoint: pathlib.Path | None = None,
        mark: str = "",
        on_progress: Callable[[Progress], None] = lambda progress: None,
        processes: Processes | None = None,
    ) -> None:
        self.student, self.objective = student, objective
        self.settings = settings or TrainingSettings()
        self._augment, self._penalty = augment, penalty
        self._scales = frozenset(scales)
        self._few_values = low_bit if low_bit is not None else contextlib.nullcontext()
        self._processes = processes or Processes()
        if isinstance(data, TrainingData):
            data = SampleFeeder(
                data,
                self.settings.batch_size,
                self.settings.seed,
                self._processes,
                _most_held_out(self.settings, len(data)),
            )
        self._feeder = data
        self._teacher = TeacherOutputs(teacher, data.data, self.settings.cache_bytes)
        self._extra = extra if extra is not None else nn.Module()
        self._checkpoint, self._mark, self._on_progress = checkpoint, mark, on_progress
        self._pruning = pruning
        self._parameters = {
            name: each for name, each in student.named_parameters() if each.requires_grad
        }
        if not self._parameters:
            raise OptionError("the student has no parameters that can be trained")
        self._masks = (
            Masks.of_zeros(self._parameters)
            if self.settings.keep_zeros
            else Masks(self._parameters, {})
        )
        self._prunable = (
            list(prunable)
            if prunable is not None
            else [
                name
                for name, each in self._parameters.items()
                if each.ndim >= 2 and min(each.shape[:2]) > 1
            ]
        )
        self._initial_sparsity = {
            name: float((self._parameters[name] == 0).float().mean()) for name in self._prunable
        }
        self.steps = self.settings.steps_of(self._feeder.steps_per_epoch)
        # What is seen once need not be remembered.
        self._recalls = self.steps > self._feeder.steps_per_epoch and augment is None
        self._module: nn.Module = student

    def run(self) -> TrainingResult:
        """Train; the student has the best weights afterwards.

        Raises:
            InterruptedTrainingError: When the user stopped it; a second Ctrl-C stops it at once.
            FeedError: When the teacher or the student does not take the data.
        """
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)
        start = time.perf_counter()
        with _deterministic(), StopRequest() as stop:
            torch.manual_seed(self.settings.seed)
            self._module = self._processes.wrap(self.student)
            self._optimizer = adam_w(
                self._parameters,
                self._extra.parameters(),
                self.settings.weight_decay,
                self._scales,
            )
            result = self._train(stop)
        result.seconds = time.perf_counter() - start
        result.teacher_samples = self._teacher.computed
        result.peak_learning_rate = self.settings.learning_rate
        return result

    def forget(self) -> None:
        """Remove the checkpoint: what was trained is safe elsewhere."""
        if self._checkpoint is not None and self._processes.is_first:
            self._checkpoint.unlink(missing_ok=True)

    def held_out_batches(self) -> list[Batch]:
        """What the student is judged with."""
        return list(self._feeder.held_out())

    # The loop

    def _train(self, stop: StopRequest) -> TrainingResult:
        state = self._resume()
        steps, every = self.steps, max(1, self.steps // self.settings.evaluations)
        began, first = time.perf_counter(), state.step
        while state.step < steps and not state.stopped:
            try:
                if self._prune(state.step):
                    state.forget_best()
                loss = self._step(state.step)
            except _NotFiniteError as error:
                epoch = state.step // self._feeder.steps_per_epoch + 1
                state.stopped = f"{error} at step {state.step + 1} (epoch {epoch})"
                state.failed = True
                break
            state.step += 1
            state.add_loss(loss)
            due = state.step % every == 0 or state.step == steps
            if due:
                self._evaluate(state)
                if self._is_hopeless(state, steps):
                    state.stopped = (
                        f"nothing better in {self.settings.patience} evaluations after step "
                        f"{state.best_step}"
                    )
                    break
                self._save(state)
            if stop.requested:
                if not due:
                    self._save(state)
                raise InterruptedTrainingError(self._where_it_stands(state))
            pace = (time.perf_counter() - began) / (state.step - first)
            self._on_progress(
                Progress(
                    state.step, steps, state.loss, state.score_text, pace * (steps - state.step)
                )
            )
        return self._finish(state)

    def _step(self, step: int) -> float:
        """Take one step.

        Returns:
            The loss, over all processes.
        """
        batches, count = self._feeder.step(step)
        generator = np.random.default_rng((self.settings.seed, 1, step, self._processes.rank))
        self._module.train()
        self._extra.train()
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        with self._few_values:
            for index, batch in enumerate(batches):
                share = batch.size / count
                last = index == len(batches) - 1
                if last:
                    total += self._backward(batch, share, generator, penalize=True)
                else:
                    with self._processes.unsynchronized(self._module):
                        total += self._backward(batch, share, generator, penalize=False)
        total = self._processes.sum(total)
        if not math.isfinite(total):
            raise _NotFiniteError("the loss of another process is no longer finite")
        self._masks.mask_gradients()
        everything = [*self._parameters.values(), *self._extra.parameters()]
        norm = nn.utils.get_total_norm([each.grad for each in everything if each.grad is not None])
        if not math.isfinite(float(norm)):
            raise _NotFiniteError(self._infinite_gradients())
        nn.utils.clip_grads_with_norm_(everything, self.settings.clip, norm)
        rate = self.settings.learning_rate
        set_rate(
            self._optimizer, rate * warm_up_and_cosine(step, self.steps, self.settings.warm_up)
        )
        self._optimizer.step()
        self._masks.apply()
        return total

    def _backward(
        self, batch: Batch, share: float, generator: np.random.Generator, *, penalize: bool
    ) -> float:
        """Add the gradient of one batch; give its part of the loss."""
        if self._augment is not None:
            batch = self._augment(batch, generator)
        needed = self.objective.needs_teacher
        wanted = self._teacher.of(batch, recall=self._recalls) if needed else {}
        parts = self._loss(batch, wanted)[0]
        loss = parts.total * share
        if penalize and self._penalty is not None:
            # Processes are averaged, and each adds all of the penalty.
            loss = loss + self._penalty() / self._processes.count
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _NotFiniteError(self._not_finite(parts, batch))
        (loss * self._processes.count).backward()
        return value

    def _loss(
        self, batch: Batch, wanted: Arrays
    ) -> tuple[LossParts, dict[str, Tensor], dict[str, Tensor]]:
        """The loss of one batch, and the outputs of student and teacher."""
        teacher = {name: _tensor(array) for name, array in wanted.items()}
        feed = {name: _tensor(array) for name, array in batch.feed.items()}
        low = self.settings.bfloat16 and torch.is_grad_enabled()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            student: dict[str, Tensor] = self._module(feed)
        return self.objective(student, teacher, batch), student, teacher

    # Pruning

    def _prune(self, step: int) -> bool:
        """Choose masks anew where the schedule says so."""
        schedule = self._pruning
        if schedule is None or not schedule.is_due(step, self.steps):
            return False
        changed = False
        for name in self._prunable:
            sparsity = schedule.sparsity_at(step, self.steps, self._initial_sparsity[name])
            keep = keep_largest({name: self._parameters[name]}, sparsity, schedule.n_m)[name]
            old = self._masks.keep.get(name)
            if old is None or not torch.equal(old, keep):
                self._masks.set(name, keep)
                changed = True
        return changed

    # Evaluation

    def _measure(self) -> Score:
        """Judge the student as it is on the held-out samples."""
        keeper = ScoreKeeper(self.objective)
        if self._processes.is_first:
            module, self._module = self._module, self.student
            try:
                self.student.eval()
                self._extra.eval()
                with torch.no_grad():
                    for batch in self._feeder.held_out():
                        needed = self.objective.needs_teacher
                        wanted = self._teacher.of_held_out(batch) if needed else {}
                        parts, student, teacher = self._loss(batch, wanted)
                        keeper.add(student, teacher, batch, float(parts.total))
            finally:
                self._module = module
        return keeper.score()

    def _evaluate(self, state: TrainingState) -> None:
        with self._few_values:
            self._look(state)

    def _look(self, state: TrainingState) -> None:
        score = self._measure()
        evaluation = Evaluation(state.step, state.loss, score, self._masks.sparsity)
        better = score.is_better_than(state.best.score if state.best else None)
        better = bool(self._processes.agree(float(better)))
        if state.before is None:
            state.before = evaluation
        state.history.append(evaluation)
        state.score_text = score.text
        if better or state.best is None:
            state.best, state.best_step = evaluation, state.step
            state.best_weights = _copy(self.student.state_dict())
            state.without_gain = 0
        else:
            state.without_gain += 1

    def _is_hopeless(self, state: TrainingState, steps: int) -> bool:
        still_pruning = self._pruning is not None and state.step < self._pruning.end * steps
        patience = self.settings.patience
        return bool(patience) and not still_pruning and state.without_gain >= patience

    def _finish(self, state: TrainingState) -> TrainingResult:
        if state.best is None:  # masks changed after the last evaluation, or it failed at once
            self._evaluate(state)
        assert state.best is not None
        assert state.before is not None
        self._save(state)
        self.student.load_state_dict(state.best_weights)
        self.student.eval()
        return TrainingResult(
            state.before,
            state.best,
            state.history,
            state.step,
            state.stopped,
            state.failed,
            state.resumed_at,
        )

    # Going on after an interruption

    def _resume(self) -> TrainingState:
        """The state to go on from: a checkpoint's, or the beginning's."""
        state = TrainingState()
        kept = None
        if self._checkpoint is not None:
            kept = load_checkpoint(self._checkpoint, self._mark)
        if kept is None:
            if self._prune(0):
                self._masks.apply()
            self._evaluate(state)
            return state
        self.student.load_state_dict(kept["student"])
        self._extra.load_state_dict(kept["extra"])
        self._optimizer.load_state_dict(kept["optimizer"])
        self._masks.keep.update(kept["masks"])
        torch.set_rng_state(kept["random"])
        state.restore(kept["state"])
        state.resumed_at = state.step
        return state

    def _save(self, state: TrainingState) -> None:
        if self._checkpoint is None or not self._processes.is_first:
            return
        content = {
            "student": self.student.state_dict(),
            "extra": self._extra.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "masks": self._masks.keep,
            "random": torch.get_rng_state(),
            "state": state.to_dict(),
        }
        save_checkpoint(self._checkpoint, content, self._mark)

    def _where_it_stands(self, state: TrainingState) -> str:
        where = f"interrupted after step {state.step:,} of {self.steps:,}"
        if self._checkpoint is None:
            return f"{where}; nothing was kept, since there is no checkpoint"
        return f"{where}; the same command goes on from there ({self._checkpoint} keeps it)"

    # What is no longer finite

    def _not_finite(self, parts: LossParts, batch: Batch) -> str:
        for name, array in batch.feed.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                return f"input '{name}' holds NaN or infinity in samples {_few(batch.samples)}"
        wrong = [
            name for name, part in parts.parts.items() if not bool(torch.isfinite(part.detach()))
        ]
        what = f"the loss of {wrong[0]}" if wrong else "the loss"
        return f"{what} became {float(parts.total.detach())} on samples {_few(batch.samples)}"

    def _infinite_gradients(self) -> str:
        wrong = [
            name
            for name, each in self._parameters.items()
            if each.grad is not None and not bool(torch.isfinite(each.grad).all())
        ]
        named = ", ".join(f"'{name}'" for name in wrong[:_MOST_NAMED])
        return f"the gradient became NaN or infinite in {named or 'a projection'}"


class _deterministic:  # noqa: N801 - used as a statement
    """Where the same steps give the same bits."""

    def __enter__(self) -> None:
        self._before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self._before)


def _most_held_out(settings: TrainingSettings, samples: int) -> int:
    """How many samples to judge with, so that looking takes little of the time.

    A step forward and back takes three times a look.
    """
    seen = settings.steps_of(max(1, samples // settings.batch_size)) * settings.batch_size
    return max(_LEAST_JUDGED, int(_JUDGING_SHARE * 3 * seen / settings.evaluations))


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.array(array, order="C", copy=not array.flags.writeable or None))


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in state.items()}


def _few(numbers: Iterable[int]) -> str:
    chosen = list(numbers)
    text = ", ".join(str(each) for each in chosen[:_MOST_NAMED])
    return text + (", ..." if len(chosen) > _MOST_NAMED else "") if chosen else "without numbers"
