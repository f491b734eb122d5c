"""The training loop: teach a student what its teacher knows, and keep the best that it was."""

from __future__ import annotations

import contextlib
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from onnxopt.errors import OptionError
from onnxopt.training.cache import TeacherOutputs
from onnxopt.training.checkpoints import load_checkpoint, save_checkpoint
from onnxopt.training.data import Batch, TrainingData
from onnxopt.training.feeders import Feeder, SampleFeeder
from onnxopt.training.interruption import InterruptedTrainingError, StopRequest
from onnxopt.training.learning_rate import (
    TRIAL_WARM_UP,
    USUAL_RATE,
    RateTrial,
    best_rate,
    next_trial,
    trial_steps,
)
from onnxopt.training.low_bit import LowBit
from onnxopt.training.masks import Masks
from onnxopt.training.objective import Objective
from onnxopt.training.parallel import Processes
from onnxopt.training.progress import Evaluation, Progress, TrainingResult, TrainingState
from onnxopt.training.schedules import PruningSchedule, keep_largest, warm_up_and_cosine
from onnxopt.training.settings import TrainingSettings
from onnxopt.training.stepper import Augment, NotFiniteError, Stepper
from onnxopt.training.teacher import Teacher

__all__ = [
    "Augment",
    "Distiller",
    "Evaluation",
    "InterruptedTrainingError",
    "Progress",
    "TrainingResult",
]

#: Judging takes about this share of the time, unless that leaves fewer samples than this.
_JUDGING_SHARE = 0.1
_LEAST_JUDGED = 256


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
        self.student = student
        self.settings = settings or TrainingSettings()
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
        self._stepper = Stepper(
            student,
            self._parameters,
            self._extra,
            self._masks,
            objective,
            self._teacher,
            data,
            self.settings,
            # What is seen once need not be remembered.
            recall=self.steps > data.steps_per_epoch and augment is None,
            augment=augment,
            penalty=penalty,
            scales=scales,
            few_values=self._few_values,
            processes=self._processes,
        )

    @property
    def trained_numbers(self) -> int:
        """How many numbers of the student are trained."""
        return sum(each.numel() for each in self._parameters.values())

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
            self._stepper.join()
            self._stepper.begin()
            result = self._train(stop)
        result.seconds = time.perf_counter() - start
        result.teacher_samples = self._teacher.computed
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
        rate = self._rate(state, stop)
        steps, every = self.steps, max(1, self.steps // self.settings.evaluations)
        began, first = time.perf_counter(), state.step
        while state.step < steps and not state.stopped:
            try:
                if self._prune(state.step):
                    state.forget_best()
                factor = warm_up_and_cosine(state.step, steps, self.settings.warm_up)
                loss = self._stepper.take(state.step, rate * factor)
            except NotFiniteError as error:
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

    # The learning rate

    def _rate(self, state: TrainingState, stop: StopRequest) -> float:
        """The rate that the user chose, or the best of a few short trials."""
        if state.rate is None:
            length = trial_steps(self.steps)
            if self.settings.learning_rate is not None:
                state.rate = self.settings.learning_rate
            elif not length:
                state.rate = USUAL_RATE
            else:
                state.rate = self._try_rates(state, length, stop)
        return state.rate

    def _try_rates(self, state: TrainingState, length: int, stop: StopRequest) -> float:
        """Train for a few steps with several rates, each time from where the training starts."""
        student, extra = _copy(self.student.state_dict()), _copy(self._extra.state_dict())
        random = torch.get_rng_state()
        assert state.before is not None
        before = self._processes.agree(state.before.score.loss)
        while (trial := next_trial(state.trials, before, length)) is not None:
            loss = self._try(*trial, stop)
            self.student.load_state_dict(student)
            self._extra.load_state_dict(extra)
            torch.set_rng_state(random)
            self._stepper.begin()
            if loss is not None:
                state.trials.append(RateTrial(trial[0], loss, trial[1]))
            self._save(state)
            if stop.requested:
                raise InterruptedTrainingError(self._where_it_stands(state))
        return best_rate(state.trials)

    def _try(self, rate: float, length: int, stop: StopRequest) -> float | None:
        """The held-out loss after a short training; None when it was interrupted."""
        began, name = time.perf_counter(), f"trying a learning rate of {rate:g}"
        score = ""
        for step in range(length):
            factor = warm_up_and_cosine(step, length, max(TRIAL_WARM_UP, self.settings.warm_up))
            try:
                loss = self._stepper.take(step, rate * factor)
            except NotFiniteError:
                return math.inf
            if stop.requested:
                return None
            left = (time.perf_counter() - began) / (step + 1) * (length - step - 1)
            self._on_progress(Progress(step + 1, length, loss, score, left, name))
        with self._few_values:
            return self._processes.agree(self._stepper.score().loss)

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

    def _evaluate(self, state: TrainingState) -> None:
        with self._few_values:
            self._look(state)

    def _look(self, state: TrainingState) -> None:
        score = self._stepper.score()
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
            peak_learning_rate=state.rate or 0.0,
            rate_trials=state.trials,
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
        self._stepper.optimizer.load_state_dict(kept["optimizer"])
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
            "optimizer": self._stepper.optimizer.state_dict(),
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


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in state.items()}
