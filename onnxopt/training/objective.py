"""What the student is to minimize: how its outputs differ from the teacher's and from labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxopt.errors import OptionError
from onnxopt.training import losses
from onnxopt.training.data import Batch
from onnxopt.training.kinds import OutputKind, rows
from onnxopt.training.plans import AS_YOU_SAY, OutputPlan, TaskPlan

__all__ = ["LossParts", "Objective"]

#: Probabilities below this count as this where logits are wanted.
_SMALLEST_PROBABILITY = 1e-7
#: Share of the squared error in the loss of what may be logits or not.
_NUMBERS_SHARE = 0.1


@dataclasses.dataclass
class LossParts:
    """A loss and what it is the sum of.

    Attributes:
        total: What is minimized.
        parts: Each part, weighted, by name.
    """

    total: Tensor
    parts: dict[str, Tensor]


class Objective:
    """The weighted sum of all losses.

    Args:
        outputs: How each output is compared with the teacher's.
        task: How labels are compared; None without labels.
        temperature: Softens logits.
        standardize: Standardize logits before they are compared.
        label_weight: Share of the labels in the sum, from 0 to 1; the rest is the teacher's.
        smoothing: Label smoothing.
    """

    def __init__(
        self,
        outputs: Sequence[OutputPlan],
        task: TaskPlan | None = None,
        *,
        temperature: float = 2.0,
        standardize: bool = False,
        label_weight: float = 0.5,
        smoothing: float = 0.0,
    ) -> None:
        if not temperature > 0:
            raise OptionError(f"a temperature is above 0, not {temperature:g}")
        if not 0 <= label_weight <= 1:
            raise OptionError(f"the weight of labels is from 0 to 1, not {label_weight:g}")
        self.outputs = tuple(outputs)
        self.task = task
        self.temperature = temperature
        self.standardize = standardize
        self.label_weight = label_weight if task is not None else 0.0
        self.smoothing = smoothing
        self.projections: Mapping[str, Any] = {}
        if self.label_weight < 1 and not any(plan.loss != "none" for plan in outputs):
            raise OptionError("no output of the teacher has a gradient, and there are no labels")

    @property
    def needs_teacher(self) -> bool:
        """Whether anything is compared with the teacher."""
        return self.label_weight < 1

    def of_outputs(self) -> Objective:
        """The same without hints, for models that give their outputs alone."""
        return Objective(
            [plan for plan in self.outputs if not plan.is_hint],
            self.task,
            temperature=self.temperature,
            standardize=self.standardize,
            label_weight=self.label_weight,
            smoothing=self.smoothing,
        )

    def __call__(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], batch: Batch
    ) -> LossParts:
        """The loss of one batch."""
        parts: dict[str, Tensor] = {}
        if self.needs_teacher:
            for plan in self.outputs:
                if plan.loss != "none" and plan.weight:
                    value = self._distance(plan, student[plan.name], teacher[plan.name], batch)
                    parts[f"{plan.name} ({plan.loss})"] = (
                        (1 - self.label_weight) * plan.weight * value
                    )
        if self.task is not None and self.label_weight > 0:
            assert batch.labels is not None
            value = self._task_loss(self.task, student, torch.from_numpy(batch.labels))
            parts[f"{self.task.output} (labels, {self.task.kind})"] = self.label_weight * value
        return LossParts(torch.stack(list(parts.values())).sum(), parts)

    def _distance(self, plan: OutputPlan, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        if plan.name in self.projections:
            student = self.projections[plan.name](student)
        wide_student = rows(student, plan.class_axis).float()
        wide_teacher = rows(teacher, plan.class_axis).float()
        weights = None
        if plan.mask is not None:
            weights = torch.from_numpy(np.ascontiguousarray(batch.feed[plan.mask])).reshape(-1)
            weights = weights.to(wide_student.dtype)
        if plan.loss == "mse":
            return losses.relative_mse(wide_student, wide_teacher, plan.variance, weights)
        if plan.loss == "cosine":
            loss = losses.cosine(wide_student, wide_teacher, weights)
            if "length 1" in plan.reason:
                return loss
            return loss + losses.relative_mse(wide_student, wide_teacher, plan.variance, weights)
        if plan.loss == "chances":
            return losses.bernoulli_kl(wide_student, wide_teacher, weights)
        wide_student, wide_teacher = _logits(plan, wide_student), _logits(plan, wide_teacher)
        if self.standardize:
            wide_student = losses.standardized(wide_student)
            wide_teacher = losses.standardized(wide_teacher)
        if plan.loss == "dkd":
            return losses.decoupled_kl(
                wide_student, wide_teacher, temperature=self.temperature, weights=weights
            )
        if plan.loss == "dist":
            return losses.pearson(wide_student, wide_teacher, self.temperature, weights=weights)
        loss = losses.kl(wide_student, wide_teacher, self.temperature, weights)
        if plan.loss == "kl" and self._may_be_numbers(plan):
            # What looks like logits may be large numbers of another kind, of which softmax sees the
            # differences alone; with this it is right for those, too.
            loss = loss + _NUMBERS_SHARE * losses.relative_mse(
                rows(student, plan.class_axis).float(),
                rows(teacher, plan.class_axis).float(),
                plan.variance,
                weights,
            )
        return loss

    def _may_be_numbers(self, plan: OutputPlan) -> bool:
        """Whether nothing but their looks says that these are logits."""
        confirmed = self.task is not None and self.task.output == plan.name and self.task.classes
        return plan.kind is OutputKind.LOGITS and not confirmed and plan.reason != AS_YOU_SAY

    def _task_loss(self, task: TaskPlan, student: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        if task.function is not None:
            return task.function(student, labels)
        output = student[task.output]
        plan = self._plan(task.output)
        if task.kind == "mse":
            wide, wanted = rows(output, plan.class_axis), rows(labels, plan.class_axis)
            return losses.relative_mse(wide.float(), wanted.float(), plan.variance)
        if task.kind == "ctc":
            output = output.movedim(task.batch_axis, 1)  # [steps, batch, classes]
            return losses.ctc(_logits(plan, output.float()), labels.long(), task.blank)
        wide = _logits(plan, rows(output, plan.class_axis).float())
        return losses.cross_entropy(wide, labels.long().reshape(-1), self.smoothing)

    def _plan(self, name: str) -> OutputPlan:
        return next(plan for plan in self.outputs if plan.name == name)


def _logits(plan: OutputPlan, values: Tensor) -> Tensor:
    """Numbers whose softmax along the last axis is the distribution over classes."""
    if plan.kind is OutputKind.PROBABILITIES:
        return values.clamp_min(_SMALLEST_PROBABILITY).log()
    return values
