"""How good a student is on samples that it does not learn from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from onnxopt.training.data import Batch
from onnxopt.training.kinds import OutputKind, rows
from onnxopt.training.objective import Objective
from onnxopt.training.plans import OutputPlan

__all__ = ["Score", "ScoreKeeper"]

#: Two scores closer than this are told apart by the loss.
_SAME = 1e-9


@dataclasses.dataclass(frozen=True)
class Score:
    """What was measured on the held-out samples.

    Attributes:
        loss: Mean loss.
        agreement: Share of decisions that are the teacher's, by output with decisions.
        sqnr_db: Signal-to-noise ratio to the teacher in dB, by output of numbers.
        accuracy: Share of decisions that are the label's; None without labels of classes.
    """

    loss: float
    agreement: dict[str, float]
    sqnr_db: dict[str, float]
    accuracy: float | None = None

    @property
    def main(self) -> float:
        """The one number that is watched, higher is better: the accuracy where there are labels,
        else the least agreement, else the least signal-to-noise ratio.
        """
        if self.accuracy is not None:
            return self.accuracy
        if self.agreement:
            return min(self.agreement.values())
        if self.sqnr_db:
            return min(self.sqnr_db.values())
        return -self.loss

    @property
    def text(self) -> str:
        """The main number for people."""
        if self.accuracy is not None:
            return f"accuracy {self.accuracy:.2%}"
        if self.agreement:
            return f"agreement {self.main:.2%}"
        return f"{self.main:.1f} dB" if self.sqnr_db else f"loss {self.loss:.4g}"

    def is_better_than(self, other: Score | None) -> bool:
        """Whether it is better; where the main numbers are equal, by the loss."""
        if not math.isfinite(self.loss):
            return False
        if other is None:
            return True
        if abs(self.main - other.main) > _SAME:
            return self.main > other.main
        return self.loss < other.loss

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return dataclasses.asdict(self)


class ScoreKeeper:
    """Adds up what `Score` says, batch by batch.

    Args:
        objective: Says which outputs there are and what labels belong to.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._plans: Sequence[OutputPlan] = [plan for plan in objective.outputs if not plan.is_hint]
        self._loss = self._samples = 0.0
        self._same = {plan.name: [0, 0] for plan in self._plans}
        self._power = {plan.name: [0.0, 0.0] for plan in self._plans}
        self._right = [0, 0]

    def add(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        batch: Batch,
        loss: float,
    ) -> None:
        """Count one batch."""
        self._loss += loss * batch.size
        self._samples += batch.size
        for plan in self._plans:
            if plan.name in teacher:
                self._compare(plan, student[plan.name], teacher[plan.name], batch)
        task = self._objective.task
        if task is not None and task.kind == "cross-entropy" and batch.labels is not None:
            plan = next(each for each in self._plans if each.name == task.output)
            answers = rows(student[task.output], plan.class_axis).argmax(dim=-1)
            labels = torch.from_numpy(batch.labels).long().reshape(-1)
            known = labels >= 0
            self._right[0] += int(((answers == labels) & known).sum())
            self._right[1] += int(known.sum())

    def score(self) -> Score:
        """What was counted so far."""
        return Score(
            self._loss / max(1.0, self._samples),
            {name: same / total for name, (same, total) in self._same.items() if total},
            {
                name: _decibels(signal, noise)
                for name, (signal, noise) in self._power.items()
                if signal > 0
            },
            self._right[0] / self._right[1] if self._right[1] else None,
        )

    def _compare(self, plan: OutputPlan, student: Tensor, teacher: Tensor, batch: Batch) -> None:
        one, other = rows(student, plan.class_axis), rows(teacher, plan.class_axis)
        if plan.mask is not None:
            counted = torch.from_numpy(batch.feed[plan.mask]).reshape(-1) != 0
            one, other = one[counted], other[counted]
        same = self._same[plan.name]
        if plan.kind.has_classes:
            alike = one.argmax(dim=-1) == other.argmax(dim=-1)
        elif plan.kind is OutputKind.CHANCES:
            alike = (one > 0.5) == (other > 0.5)
        elif plan.kind is OutputKind.DISCRETE:
            alike = one == other
        else:
            power = self._power[plan.name]
            power[0] += float(other.double().square().sum())
            power[1] += float((one.double() - other.double()).square().sum())
            return
        same[0] += int(alike.sum())
        same[1] += alike.numel()


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if math.isfinite(noise) else -math.inf
