"""Where a training stands, what it has seen, and what came of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from onnxopt.training.learning_rate import RateTrial
from onnxopt.training.score import Score

__all__ = ["Evaluation", "Progress", "TrainingResult", "TrainingState"]

#: The loss that is shown is a running mean over about so many steps.
_SMOOTHING_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Attributes:
        step: Steps that were taken.
        steps: Steps in all, at most.
        loss: Running mean of the loss.
        score: The last evaluation in words.
        seconds_left: Estimate for the rest.
        what: What is being done.
    """

    step: int
    steps: int
    loss: float
    score: str
    seconds_left: float
    what: str = "distilling"

    @property
    def text(self) -> str:
        """The same in one line."""
        minutes, seconds = divmod(round(self.seconds_left), 60)
        left = f"{minutes} min {seconds:02d} s left" if minutes else f"{seconds} s left"
        where = f"step {self.step:,} of {self.steps:,}"
        parts = (where, f"loss {self.loss:.4g}", self.score, left)
        return f"{self.what}: {', '.join(part for part in parts if part)}"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One look at the held-out samples.

    Attributes:
        step: Steps taken before it.
        train_loss: Running mean of the loss; NaN before the first step.
        score: What was measured.
        sparsity: Share of zeros in masked parameters.
    """

    step: int
    train_loss: float
    score: Score
    sparsity: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)


@dataclasses.dataclass
class TrainingResult:
    """What came of a training.

    Attributes:
        before: The student as it was, with its sparsity if it was pruned at once.
        best: The evaluation whose weights the student has now.
        history: All evaluations.
        steps: Steps that were taken.
        stopped: Why it ended before its time; empty when it did not.
        failed: Whether it ended because numbers were no longer finite.
        resumed_at: Step at which an interrupted training went on; None when it began anew.
        seconds: Time of this run.
        teacher_samples: Samples that the teacher was run on.
        peak_learning_rate: The relative learning rate at its highest.
        rate_trials: The short trainings by which it was chosen; none when it was given.
    """

    before: Evaluation
    best: Evaluation
    history: list[Evaluation]
    steps: int
    stopped: str = ""
    failed: bool = False
    resumed_at: int | None = None
    seconds: float = 0.0
    teacher_samples: int = 0
    peak_learning_rate: float = 0.0
    rate_trials: list[RateTrial] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)


@dataclasses.dataclass
class TrainingState:
    """What changes while a student is trained, beside the student itself."""

    step: int = 0
    loss: float = math.nan
    score_text: str = ""
    before: Evaluation | None = None
    best: Evaluation | None = None
    best_step: int = 0
    best_weights: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: list[Evaluation] = dataclasses.field(default_factory=list)
    without_gain: int = 0
    stopped: str = ""
    failed: bool = False
    resumed_at: int | None = None
    rate: float | None = None
    trials: list[RateTrial] = dataclasses.field(default_factory=list)

    def add_loss(self, loss: float) -> None:
        """Move the running mean."""
        share = 1 / _SMOOTHING_STEPS
        self.loss = loss if math.isnan(self.loss) else (1 - share) * self.loss + share * loss

    def forget_best(self) -> None:
        """What was best had fewer zeros than are wanted."""
        self.best, self.best_weights, self.without_gain = None, {}, 0

    def to_dict(self) -> dict[str, Any]:
        """As tensors and plain data."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("before", "best", "history", "trials")
        }
        return {
            **fields,
            "before": None if self.before is None else self.before.to_dict(),
            "best": None if self.best is None else self.best.to_dict(),
            "history": [each.to_dict() for each in self.history],
            "trials": [dataclasses.asdict(each) for each in self.trials],
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """The inverse of `to_dict`."""
        for name, value in kept.items():
            if name == "history":
                value = [_evaluation(each) for each in value]
            elif name == "trials":
                value = [RateTrial(**each) for each in value]
            elif name in ("before", "best"):
                value = None if value is None else _evaluation(value)
            setattr(self, name, value)


def _evaluation(fields: Mapping[str, Any]) -> Evaluation:
    return Evaluation(**{**fields, "score": Score(**fields["score"])})
