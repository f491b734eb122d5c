"""What a distillation is to learn, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from onnxopt.model import ExternalData
from onnxopt.training.low_bit import LowBitKind
from onnxopt.training.schedules import PruningSchedule
from onnxopt.training.settings import TrainingSettings

__all__ = ["DistillSettings"]


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """What is to be learned, and how.

    Attributes:
        training: The loop's settings.
        labels: Name of the array of labels in the data; None to learn from the teacher alone.
        label_output: The output that they belong to; found out when None.
        label_weight: Their share of the loss, from 0 to 1.
        smoothing: Label smoothing.
        kinds: Kinds of outputs, by name, where they are not what they seem.
        losses: Losses by output.
        weights: Factors of losses by output.
        hints: Inner tensors to be led towards the teacher's: the teacher's name and the student's.
        hint_weight: Factor of each hint.
        temperature: Softens logits.
        standardize: Standardize logits before they are compared.
        statistics: Whether BatchNormalization takes the statistics of batches; None to decide by
            the size of a batch.
        renormalize: Put a BatchNormalization after each convolution for the training, one that
            changes nothing at first, and fold it in the end (`onnxopt.training.normalizing`).
        recalibrate: Choose the ranges of a quantized student's activations anew after the training,
            where that helps (`onnxopt.training.recalibration`); not where scales were trained.
        trainable: Patterns of further constants that are trained, such as scales of quantizers.
        frozen: Patterns of weights that stay as they are.
        learn_scales: Train the scales of quantizers, too, beside what is rounded with them (LSQ).
        low_bit: Train weights of two (``binary``) or three (``ternary``) values a channel.
        low_bit_weights: Patterns of the weights that are to have so few; those of every layer but
            the first and the last when None, which cost the most accuracy for the least size.
        penalty: Draw weights to zero while training: ``l1``, ``l2``, or ``group-lasso`` on channels
            that can only be removed together.
        penalty_strength: Its factor.
        pruning: Prune while training.
        prunable: Patterns of weights to prune; all of two or more dimensions when None.
        threads: Threads of PyTorch and of the teacher.
        external_data: Weights beside the result: as the student has them, always, or never.
    """

    training: TrainingSettings = dataclasses.field(default_factory=TrainingSettings)
    labels: str | None = None
    label_output: str | None = None
    label_weight: float = 0.5
    smoothing: float = 0.0
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    losses: Mapping[str, str] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    hints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hint_weight: float = 1.0
    temperature: float = 2.0
    standardize: bool = False
    statistics: bool | None = None
    renormalize: bool = False
    recalibrate: bool = True
    trainable: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    learn_scales: bool = False
    low_bit: LowBitKind | None = None
    low_bit_weights: tuple[str, ...] | None = None
    penalty: Literal["l1", "l2", "group-lasso"] | None = None
    penalty_strength: float = 1e-4
    pruning: PruningSchedule | None = None
    prunable: tuple[str, ...] | None = None
    threads: int = 1
    external_data: ExternalData = "auto"
