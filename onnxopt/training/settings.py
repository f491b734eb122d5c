"""How to train: everything a caller can choose, with defaults that need no tuning."""

from __future__ import annotations

import dataclasses

from onnxopt.errors import OptionError

__all__ = ["TrainingSettings"]


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        epochs: How often all samples are gone through, at most.
        steps: Steps instead, at most; None to go by epochs.
        batch_size: Samples for one step, in all processes together.
        learning_rate: Length of a step relative to the size of a weight: each tensor's rate is this
            times the root mean square of its numbers at the start, so that one value serves for
            convolutions and for transformers (Shazeer and Stern, 2018, "Adafactor",
            arXiv:1804.04235, section 8). None to choose it by short trials from the same start
            (`onnxopt.training.learning_rate`).
        warm_up: Share of the steps in which the rate rises.
        weight_decay: AdamW's, on parameters of two or more dimensions.
        clip: Largest norm of the gradient.
        evaluations: How often the student is judged on held-out samples.
        patience: Stop after so many evaluations without a better one; 0 for never.
        keep_zeros: Keep weights that are zero now at zero.
        seed: Fixes the order of samples and all that is random.
        threads: Threads of PyTorch; None to leave them as they are.
        bfloat16: Compute layers in bfloat16 while training, with weights and sums in float32:
            faster where the processor has it, and less exact. Not for models with quantizers.
        cache_bytes: Memory for the teacher's outputs.
    """

    epochs: float = 10.0
    steps: int | None = None
    batch_size: int = 64
    learning_rate: float | None = None
    warm_up: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    evaluations: int = 20
    patience: int = 8
    keep_zeros: bool = True
    seed: int = 0
    threads: int | None = None
    bfloat16: bool = False
    cache_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(f"{name} is a number above 0, not {value:g}")
        for name in ("batch_size", "evaluations"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is a whole number from 1, not {getattr(self, name)}")
        if self.steps is not None and self.steps < 0:
            raise OptionError(f"steps is a whole number from 0, not {self.steps}")

    def steps_of(self, steps_per_epoch: int) -> int:
        """Steps in all, at most."""
        if self.steps is not None:
            return self.steps
        return max(1, round(self.epochs * steps_per_epoch))
