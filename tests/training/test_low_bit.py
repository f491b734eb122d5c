import pathlib

import numpy as np
import onnx
import pytest
import torch

from onnxopt.training.distillation import DistillSettings, distill
from onnxopt.training.low_bit import LowBit, binary, ternary
from onnxopt.training.settings import TrainingSettings
from tests.training import models

WEIGHT = torch.tensor([[[1.0, -0.1, 0.4, -3.0]], [[0.2, 0.2, -0.2, 0.0]]])


def test_ternary_by_hand() -> None:
    """Channel 0: mean 1.125, threshold 0.7875, of 1 and -3 the mean is 2. Channel 1: 0.105."""
    wanted = torch.tensor([[[2.0, 0.0, 0.0, -2.0]], [[0.2, 0.2, -0.2, 0.0]]])
    torch.testing.assert_close(ternary(WEIGHT), wanted)


def test_binary_by_hand() -> None:
    wanted = torch.tensor([[[1.125, -1.125, 1.125, -1.125]], [[0.15, 0.15, -0.15, 0.15]]])
    torch.testing.assert_close(binary(WEIGHT), wanted)


def test_the_few_values_are_there_only_inside() -> None:
    parameter = torch.nn.Parameter(WEIGHT.clone())
    with LowBit({"w": parameter}, "ternary"):
        torch.testing.assert_close(parameter.detach(), ternary(WEIGHT))
        (parameter * torch.arange(4.0)).sum().backward()
    assert torch.equal(parameter.detach(), WEIGHT)
    assert torch.equal(parameter.grad, torch.arange(4.0).expand(2, 1, 4))  # straight through


@pytest.mark.parametrize(("kind", "count"), [("ternary", 3), ("binary", 2)])
def test_a_student_with_few_values_a_channel(tmp_path: pathlib.Path, kind: str, count: int) -> None:
    paths = models.write(tmp_path, teacher=models.balanced(models.convolutional()))
    settings = DistillSettings(
        training=TrainingSettings(steps=150, batch_size=32, evaluations=5, learning_rate=0.03),
        low_bit=kind,  # type: ignore[arg-type]
        low_bit_weights=("w2",),
    )
    out = tmp_path / "out.onnx"
    report = distill(paths["teacher"], paths["teacher"], None, paths["data"], settings)
    assert report.training.best.score.loss < report.training.before.score.loss
    student = tmp_path / "student.onnx"
    onnx.save(models.noisy(onnx.load(paths["teacher"]), 1.0), student)
    distill(paths["teacher"], student, out, paths["data"], settings)
    weight = next(each for each in onnx.load(out).graph.initializer if each.name == "w2")
    for channel in onnx.numpy_helper.to_array(weight):
        assert len(np.unique(channel)) <= count
