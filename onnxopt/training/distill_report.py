"""What a distillation did."""

from __future__ import annotations

import dataclasses
from typing import Any

from onnxopt.accuracy import Fidelity
from onnxopt.training.plans import OutputPlan, TaskPlan
from onnxopt.training.progress import TrainingResult
from onnxopt.training.score import Score

__all__ = ["DistillReport"]


@dataclasses.dataclass
class DistillReport:
    """What a distillation did.

    Attributes:
        teacher: The teacher's path.
        student: The student's path.
        target: Where the result was written.
        samples: Samples in all, and how many of them were held out.
        stacked: Whether samples were stacked into batches.
        outputs: How each output was compared.
        task: How labels were compared; None without labels.
        parameters: How many numbers were trained.
        masked: Share of zeros kept in masked parameters.
        training: What the loop did.
        before: The student, in ONNX Runtime on held-out samples.
        after: The result, likewise.
        fidelity: The result's outputs against the teacher's, likewise.
        changed: Names of the tensors that changed.
        bytes_before: Size of the student.
        bytes_after: Size of the result.
        notes: Sentences for the user.
        seconds: Time of the whole.
        environment: Machine and versions.
    """

    teacher: str
    student: str
    target: str | None
    samples: int
    held_out: int
    stacked: bool
    outputs: list[OutputPlan]
    task: TaskPlan | None
    parameters: int
    masked: float
    training: TrainingResult
    before: Score
    after: Score
    fidelity: Fidelity
    changed: list[str]
    bytes_before: int
    bytes_after: int
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("outputs", "task", "training", "before", "after", "fidelity")
        }
        task = None
        if self.task is not None:
            task = {"output": self.task.output, "loss": self.task.kind}
        return {
            **fields,
            "outputs": [dataclasses.asdict(plan) for plan in self.outputs],
            "task": task,
            "training": self.training.to_dict(),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "fidelity": self.fidelity.to_dict(),
        }
