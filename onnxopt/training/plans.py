"""How each output is to be compared with the teacher's and with labels, found out or as told."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from onnxopt.errors import FeedError, OptionError
from onnxopt.training.data import NO_LABEL
from onnxopt.training.kinds import OutputKind, Recognized, recognize, recognize_mask

__all__ = [
    "AS_YOU_SAY",
    "LOSSES",
    "LossName",
    "OutputPlan",
    "TaskKind",
    "TaskPlan",
    "check_labels",
    "plan_outputs",
    "plan_task",
    "recognize_by_labels",
]

Array = np.ndarray[Any, Any]
LossName = Literal["kl", "dkd", "dist", "chances", "cosine", "mse", "none"]
TaskKind = Literal["cross-entropy", "ctc", "mse", "own"]

LOSSES: tuple[LossName, ...] = ("kl", "dkd", "dist", "chances", "cosine", "mse", "none")
#: The loss of each kind of output.
_USUAL: Mapping[OutputKind, LossName] = {
    OutputKind.LOGITS: "kl",
    OutputKind.PROBABILITIES: "kl",
    OutputKind.LOG_PROBABILITIES: "kl",
    OutputKind.CHANCES: "chances",
    OutputKind.EMBEDDING: "cosine",
    OutputKind.NUMBERS: "mse",
    OutputKind.DISCRETE: "none",
}
#: The reason where the user says what an output is.
AS_YOU_SAY = "as you say"


@dataclasses.dataclass(frozen=True)
class OutputPlan:
    """How one output is compared with the teacher's.

    Attributes:
        name: Its name; of a hint, that of the inner tensor.
        kind: What its numbers mean.
        class_axis: Axis of classes or of an embedding's dimensions.
        reason: Why it was taken for that.
        loss: The loss.
        variance: Variance of the teacher's numbers.
        mask: Input that says which positions count; None when all do.
        weight: Factor of its loss.
        is_hint: Whether it is an inner tensor.
    """

    name: str
    kind: OutputKind
    class_axis: int
    reason: str
    loss: LossName
    variance: float = 1.0
    mask: str | None = None
    weight: float = 1.0
    is_hint: bool = False


@dataclasses.dataclass(frozen=True)
class TaskPlan:
    """How one output is compared with labels.

    Attributes:
        output: The output.
        kind: The loss.
        classes: How many classes it has; 0 for numbers.
        function: The user's own loss of outputs and labels.
        batch_axis: Axis of the output along which samples lie.
        blank: Class that stands for no symbol, for CTC.
    """

    output: str
    kind: TaskKind
    classes: int = 0
    function: Callable[[Mapping[str, Tensor], Tensor], Tensor] | None = None
    batch_axis: int = 0
    blank: int = 0


def plan_outputs(
    outputs: Sequence[Mapping[str, Array]],
    feeds: Sequence[Mapping[str, Array]],
    *,
    kinds: Mapping[str, str] | None = None,
    chosen_losses: Mapping[str, str] | None = None,
    weights: Mapping[str, float] | None = None,
    hints: Sequence[str] = (),
    hint_weight: float = 1.0,
) -> list[OutputPlan]:
    """Look at what the teacher gives and plan the loss of each output.

    Args:
        outputs: The teacher's outputs and hints on some feeds.
        feeds: Those feeds.
        kinds: Kinds that the user names, by output.
        chosen_losses: Losses that the user names, by output.
        weights: Factors by output; 1 where none is given.
        hints: Names of inner tensors among the outputs.
        hint_weight: Factor of each hint.

    Raises:
        OptionError: When a kind, loss or output is not known.
    """
    kinds, chosen_losses, weights = kinds or {}, chosen_losses or {}, weights or {}
    for option, table in (("kind", kinds), ("loss", chosen_losses), ("weight", weights)):
        for name in table:
            _known(
                name,
                outputs[0],
                f"a {option} is given for '{name}', but the teacher has no such output",
            )
    plans: list[OutputPlan] = []
    for name in outputs[0]:
        arrays = [each[name] for each in outputs]
        found = recognize(arrays)
        if name in hints:
            found = dataclasses.replace(found, kind=OutputKind.NUMBERS, reason="a hint")
            found = dataclasses.replace(found, class_axis=_channel_axis(arrays[0].ndim))
        if name in kinds:
            found = _override(found, kinds[name])
        loss = _USUAL[found.kind]
        if name in chosen_losses:
            loss = _loss(chosen_losses[name], found.kind, name)
        shapes = [array.shape for array in arrays]
        plans.append(
            OutputPlan(
                name,
                found.kind,
                found.class_axis,
                found.reason,
                loss,
                found.variance,
                recognize_mask(feeds, shapes) if arrays[0].ndim == 3 else None,
                weights.get(name, hint_weight if name in hints else 1.0),
                name in hints,
            )
        )
    return plans


def recognize_by_labels(
    plans: Sequence[OutputPlan], outputs: Sequence[Mapping[str, Array]], labels: Sequence[Array]
) -> list[OutputPlan]:
    """Take numbers for logits where whole-number labels fit them and nothing else fits better.

    A teacher that is sure of little, or says the same of all samples that were looked at, has
    logits that do not look like it.
    """
    if labels[0].dtype.kind not in "iu" or any(plan.kind.has_classes for plan in plans):
        return list(plans)
    unclear = (OutputKind.NUMBERS, OutputKind.EMBEDDING)
    fitting = [
        plan
        for plan in plans
        if plan.kind in unclear
        and plan.reason != AS_YOU_SAY
        and not plan.is_hint
        and all(
            array.ndim > 1 and array.shape[:-1] == label.shape and label.max() < array.shape[-1]
            for array, label in zip((each[plan.name] for each in outputs), labels, strict=True)
        )
    ]
    if len(fitting) != 1:
        return list(plans)
    return [
        plan
        if plan is not fitting[0]
        else dataclasses.replace(
            plan,
            kind=OutputKind.LOGITS,
            class_axis=outputs[0][plan.name].ndim - 1,
            loss="kl" if plan.loss in ("mse", "cosine") else plan.loss,
            reason="the labels are classes of it",
        )
        for plan in plans
    ]


def plan_task(
    plans: Sequence[OutputPlan],
    outputs: Sequence[Mapping[str, Array]],
    labels: Sequence[Array],
    *,
    output: str | None = None,
    function: Callable[[Mapping[str, Tensor], Tensor], Tensor] | None = None,
    batch_axes: Mapping[str, int] | None = None,
) -> TaskPlan:
    """Find out which output the labels belong to, and their loss.

    Args:
        plans: How outputs are compared.
        outputs: The teacher's outputs on some samples.
        labels: The labels of those samples.
        output: The output that the user names.
        function: The user's own loss.
        batch_axes: Axis of samples by output.

    Raises:
        FeedError: When no output, or more than one, fits the labels.
    """
    candidates = [plan for plan in plans if plan.loss != "none" and not plan.is_hint]
    if output is not None:
        _known(
            output,
            [plan.name for plan in plans],
            f"labels are said to belong to '{output}', but the teacher has no such output",
        )
        candidates = [plan for plan in plans if plan.name == output]
    if function is not None:
        name = candidates[0].name if candidates else plans[0].name
        return TaskPlan(name, "own", function=function)
    fitting: list[TaskPlan] = []
    for plan in candidates:
        axis = (batch_axes or {}).get(plan.name, 0)
        kind = _task_kind(plan, [each[plan.name] for each in outputs], labels, axis)
        if kind is not None:
            classes = outputs[0][plan.name].shape[plan.class_axis] if plan.kind.has_classes else 0
            fitting.append(TaskPlan(plan.name, kind, classes, batch_axis=axis))
    if len(fitting) == 1:
        return fitting[0]
    label = f"labels of type {labels[0].dtype} and shape {list(labels[0].shape)} for each sample"
    if fitting:
        names = ", ".join(f"'{each.output}'" for each in fitting)
        raise FeedError(f"{label} fit several outputs ({names}): say which with --label-output")
    shapes = ", ".join(
        f"'{plan.name}' {plan.kind} {list(outputs[0][plan.name].shape)}" for plan in candidates
    )
    advice = _advice(candidates, outputs, labels) or "leave labels out to train without them"
    raise FeedError(f"{label} fit no output ({shapes}); {advice}")


def _advice(
    plans: Sequence[OutputPlan], outputs: Sequence[Mapping[str, Array]], labels: Sequence[Array]
) -> str:
    """What to do where labels are classes of an output that is not taken for scores of classes."""
    for plan in plans:
        arrays = [each[plan.name] for each in outputs]
        if (
            labels[0].dtype.kind not in "iu"
            or plan.kind.has_classes
            or any(
                array.shape[:-1] != label.shape for array, label in zip(arrays, labels, strict=True)
            )
        ):
            continue
        count, most = arrays[0].shape[-1], max(int(label.max(initial=0)) for label in labels)
        if most >= count:
            return (
                f"label {most} is out of range if '{plan.name}' holds scores of {count} classes, "
                f"from 0 to {count - 1}"
            )
        return f"if '{plan.name}' holds scores of {count} classes, add --kind {plan.name}=logits"
    return ""


def check_labels(task: TaskPlan, labels: Sequence[Array]) -> None:
    """Hold all labels against the number of classes.

    Raises:
        FeedError: When one is out of range, with the sample.
    """
    if not task.classes:
        return
    for number, label in enumerate(labels):
        low, high = int(label.min(initial=0)), int(label.max(initial=0))
        if high >= task.classes or low < NO_LABEL:
            wrong = high if high >= task.classes else low
            raise FeedError(
                f"label {wrong} of sample {number} is out of range: output '{task.output}' has "
                f"{task.classes} classes, from 0 to {task.classes - 1} ({NO_LABEL} for none)"
            )


def _task_kind(
    plan: OutputPlan, outputs: Sequence[Array], labels: Sequence[Array], batch_axis: int
) -> TaskKind | None:
    """The loss with which labels fit an output, or None."""
    if labels[0].dtype.kind == "f":
        same = all(a.shape == b.shape for a, b in zip(labels, outputs, strict=True))
        return "mse" if same and not plan.kind.has_classes else None
    if labels[0].dtype.kind not in "iu" or not plan.kind.has_classes:
        return None
    positions = [
        tuple(size for axis, size in enumerate(each.shape) if axis != plan.class_axis % each.ndim)
        for each in outputs
    ]
    if all(a.shape == b for a, b in zip(labels, positions, strict=True)):
        return "cross-entropy"
    sequences = all(
        label.ndim == 2 and each.ndim == 3 and len(label) == each.shape[batch_axis]
        for label, each in zip(labels, outputs, strict=True)
    )
    return "ctc" if sequences else None


def _channel_axis(rank: int) -> int:
    """Axis of channels of an inner tensor: after the batch in images, the last elsewhere."""
    return 1 if rank >= 4 else max(rank - 1, 0)


def _override(found: Recognized, text: str) -> Recognized:
    """A kind as the user writes it: its name, or its name and the class axis, ``logits@1``."""
    name, _, axis = text.partition("@")
    if name not in set(OutputKind) or (axis and not axis.lstrip("-").isdigit()):
        raise OptionError(
            f"'{text}' is no kind of output; write one of {', '.join(OutputKind)}, with the axis "
            "of classes behind it where that is not found, such as logits@1"
        )
    chosen = int(axis) if axis else found.class_axis
    return dataclasses.replace(found, kind=OutputKind(name), class_axis=chosen, reason=AS_YOU_SAY)


def _loss(name: str, kind: OutputKind, output: str) -> LossName:
    for loss in LOSSES:
        if name == loss:
            if loss in ("kl", "dkd", "dist") and not kind.has_classes:
                raise OptionError(
                    f"loss '{name}' is for classes, but output '{output}' was taken for {kind}; "
                    f"say --kind {output}=logits if that is wrong"
                )
            return loss
    raise OptionError(f"'{name}' is no loss; choose one of {', '.join(LOSSES)}")


def _known(name: str, names: Any, complaint: str) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, list(names), n=1)
        hint = f"; is it '{close[0]}'?" if close else f"; it has {', '.join(names)}"
        raise OptionError(complaint + hint)
