"""A small teacher, a small student, and samples for them."""

from typing import Any

import numpy as np
import torch
from torch import nn

from onnxopt.training.data import TrainingData, find_stacking
from onnxopt.training.named_module import NamedModule
from onnxopt.training.objective import Objective
from onnxopt.training.plans import plan_outputs, plan_task
from onnxopt.training.teacher import CallableTeacher

WIDTH, CLASSES = 6, 4


def teacher(calls: list[int] | None = None) -> CallableTeacher:
    generator = np.random.default_rng(5)
    first = generator.normal(size=(WIDTH, 16)).astype(np.float32)
    second = generator.normal(size=(16, CLASSES)).astype(np.float32)

    def run(feed: Any) -> dict[str, Any]:
        if calls is not None:
            calls.append(len(feed["x"]))
        return {"logits": np.maximum(feed["x"] @ first, 0) @ second}

    return CallableTeacher(run)


def student(seed: int = 0, dropout: float = 0.0) -> NamedModule:
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Linear(WIDTH, 12), nn.ReLU(), nn.Dropout(dropout), nn.Linear(12, CLASSES)
    )
    return NamedModule(layers, ["x"], ["logits"])


def samples(count: int = 200, labels: bool = False) -> TrainingData:
    generator = np.random.default_rng(1)
    feeds = [{"x": generator.normal(size=(1, WIDTH)).astype(np.float32)} for _ in range(count)]
    known = None
    if labels:
        known = [teacher().outputs(feed)["logits"].argmax(axis=1) for feed in feeds]
    data = TrainingData.of(feeds, known)
    data.stacking = find_stacking(teacher(), data.feed(0), data.feed(1))
    return data


def objective(data: TrainingData, **options: Any) -> Objective:
    feeds = [data.feed(number) for number in range(16)]
    outputs = [teacher().outputs(feed) for feed in feeds]
    plans = plan_outputs(outputs, feeds)
    task = None if data.labels is None else plan_task(plans, outputs, data.labels[:16])
    return Objective(plans, task, **options)
