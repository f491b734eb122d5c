"""Losses put together: rows, masks, weights, labels."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from onnxopt.errors import FeedError, OptionError
from onnxopt.training import losses
from onnxopt.training.data import Batch
from onnxopt.training.kinds import OutputKind
from onnxopt.training.objective import Objective
from onnxopt.training.plans import OutputPlan, check_labels, plan_outputs, plan_task

RNG = np.random.default_rng(0)


def tensor(*shape: int, scale: float = 1.0) -> Any:
    return torch.from_numpy((RNG.normal(size=shape) * scale).astype(np.float32))


def plan(kind: OutputKind, loss: Any, axis: int, **options: Any) -> OutputPlan:
    return OutputPlan("y", kind, axis, "as you say", loss, **options)


def total(objective: Objective, student: Any, teacher: Any, **batch: Any) -> float:
    given = Batch(batch.get("feed", {}), labels=batch.get("labels"))
    return float(objective({"y": student}, {"y": teacher}, given).total)


def test_maps_are_compared_pixel_by_pixel_over_channels() -> None:
    student, teacher = tensor(2, 5, 3, 3), tensor(2, 5, 3, 3)
    made = Objective([plan(OutputKind.LOGITS, "kl", 1)], temperature=3.0)
    pixels = [
        losses.kl(student[b, :, i, j][None], teacher[b, :, i, j][None], 3.0)
        for b in range(2)
        for i in range(3)
        for j in range(3)
    ]
    assert total(made, student, teacher) == pytest.approx(
        float(torch.stack(pixels).mean()), rel=1e-5
    )


def test_padding_does_not_count() -> None:
    student, teacher = tensor(2, 4, 6), tensor(2, 4, 6)
    mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
    made = Objective([plan(OutputKind.EMBEDDING, "mse", 2, mask="m")])
    wanted = losses.relative_mse(
        torch.cat([student[0, :2], student[1, :1]]), torch.cat([teacher[0, :2], teacher[1, :1]])
    )
    assert total(made, student, teacher, feed={"m": mask}) == pytest.approx(float(wanted), rel=1e-5)


def test_probabilities_are_the_same_as_their_logits() -> None:
    student, teacher = tensor(4, 5), tensor(4, 5)
    logits = Objective([plan(OutputKind.LOGITS, "kl", 1)])
    probabilities = Objective([plan(OutputKind.PROBABILITIES, "kl", 1)])
    assert total(probabilities, student.softmax(1), teacher.softmax(1)) == pytest.approx(
        total(logits, student, teacher), rel=1e-4
    )


def test_what_merely_looks_like_logits_is_held_to_its_numbers_too() -> None:
    student = tensor(4, 5, scale=50)
    unsure = Objective([dataclasses.replace(plan(OutputKind.LOGITS, "kl", 1), reason="confident")])
    said = Objective([plan(OutputKind.LOGITS, "kl", 1)])
    assert total(said, student + 7, student) == pytest.approx(0.0, abs=1e-4)
    assert total(unsure, student + 7, student) == pytest.approx(0.1 * 49, rel=1e-4)


def test_labels_and_teacher_share_the_loss() -> None:
    student, teacher, labels = tensor(4, 5), tensor(4, 5), np.array([0, 1, 2, 3])
    outputs = [{"y": teacher[n : n + 1].numpy()} for n in range(4)]
    plans = [plan(OutputKind.LOGITS, "kl", 1)]
    task = plan_task(plans, outputs, [labels[n : n + 1] for n in range(4)])
    assert (task.kind, task.classes) == ("cross-entropy", 5)
    made = Objective(plans, task, temperature=2.0, label_weight=0.25)
    kl = losses.kl(student, teacher, 2.0)
    ce = torch.nn.functional.cross_entropy(student, torch.from_numpy(labels))
    assert total(made, student, teacher, labels=labels) == pytest.approx(
        float(0.75 * kl + 0.25 * ce), rel=1e-5
    )


@pytest.mark.parametrize("batch_axis", [0, 1])
def test_texts_are_ctc_whichever_axis_the_batch_is(batch_axis: int) -> None:
    shape = (2, 9, 6) if batch_axis == 0 else (9, 2, 6)
    logits, labels = tensor(*shape), np.array([[1, 2, -1], [3, 3, 1]])
    outputs = [{"y": logits.numpy()}]
    plans = [plan(OutputKind.LOGITS, "kl", 2)]
    task = plan_task(plans, outputs, [labels], batch_axes={"y": batch_axis})
    assert task.kind == "ctc"
    made = Objective(plans, task, label_weight=1.0)
    wanted = losses.ctc(logits.movedim(batch_axis, 1), torch.from_numpy(labels))
    assert total(made, logits, logits, labels=labels) == pytest.approx(float(wanted))


def test_dense_labels() -> None:
    logits, labels = tensor(2, 5, 3, 3), RNG.integers(0, 5, (2, 3, 3))
    plans = [plan(OutputKind.LOGITS, "kl", 1)]
    task = plan_task(plans, [{"y": logits.numpy()}], [labels])
    assert task.kind == "cross-entropy"
    made = Objective(plans, task, label_weight=1.0)
    wanted = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    assert total(made, logits, logits, labels=labels) == pytest.approx(float(wanted), rel=1e-5)


def test_numbers_as_labels() -> None:
    student, labels = tensor(3, 2), RNG.normal(size=(3, 2)).astype(np.float32)
    plans = [plan(OutputKind.NUMBERS, "mse", 1, variance=4.0)]
    task = plan_task(plans, [{"y": student.numpy()}], [labels])
    assert task.kind == "mse"
    made = Objective(plans, task, label_weight=1.0)
    assert total(made, student, student, labels=labels) == pytest.approx(
        float(((student.numpy() - labels) ** 2).mean()) / 4, rel=1e-5
    )


def test_labels_that_fit_two_outputs() -> None:
    outputs = [{name: RNG.normal(size=(1, 5)).astype(np.float32) for name in "ab"}]
    plans = [dataclasses.replace(plan(OutputKind.LOGITS, "kl", 1), name=name) for name in "ab"]
    labels = [np.array([1])]
    with pytest.raises(FeedError, match=r"fit several outputs.*--label-output"):
        plan_task(plans, outputs, labels)
    assert plan_task(plans, outputs, labels, output="b").output == "b"


def test_labels_below_the_padding_are_out_of_range() -> None:
    plans = [plan(OutputKind.LOGITS, "kl", 1)]
    task = plan_task(plans, [{"y": np.zeros((1, 5), np.float32)}], [np.array([1])])
    check_labels(task, [np.array([-1]), np.array([4])])
    with pytest.raises(FeedError, match="label -2 of sample 1 is out of range"):
        check_labels(task, [np.array([0]), np.array([-2])])


def test_outputs_without_a_gradient_alone_teach_nothing() -> None:
    feeds = [{"x": np.zeros(1)}]
    plans = plan_outputs([{"y": np.array([1, 2])}], feeds)
    with pytest.raises(OptionError, match="no output of the teacher has a gradient"):
        Objective(plans)


def test_losses_of_classes_need_classes() -> None:
    outputs = [{"y": RNG.normal(size=(4, 2)).astype(np.float32)}]
    with pytest.raises(OptionError, match=r"loss 'dkd' is for classes.*--kind y=logits"):
        plan_outputs(outputs, [{}], chosen_losses={"y": "dkd"})
    (made,) = plan_outputs(outputs, [{}], chosen_losses={"y": "dkd"}, kinds={"y": "logits"})
    assert made.loss == "dkd"
