"""A model in ONNX Runtime, scored on held-out samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxopt.training.data import Batch
from onnxopt.training.objective import Objective
from onnxopt.training.score import Score, ScoreKeeper
from onnxopt.training.teacher import OnnxTeacher

__all__ = ["first_batches", "judge"]

Arrays = dict[str, np.ndarray[Any, Any]]


def judge(
    model: OnnxTeacher, objective: Objective, batches: Sequence[Batch], wanted: Sequence[Arrays]
) -> tuple[Score, list[Arrays]]:
    """Score a model in ONNX Runtime; give its outputs, too."""
    keeper = ScoreKeeper(objective)
    outputs: list[Arrays] = []
    for batch, reference in zip(batches, wanted, strict=True):
        found = model.outputs(batch.feed)
        outputs.append(found)
        mine, wanted_tensors = _tensors(found), _tensors(reference)
        loss = objective(mine, wanted_tensors, batch).total
        keeper.add(mine, wanted_tensors, batch, float(loss))
    return keeper.score(), outputs


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(np.array(array))
        for name, array in arrays.items()
        if array.dtype.kind in "fiub"
    }


def first_batches(batches: Sequence[Batch], most: int) -> list[Batch]:
    """The first batches, up to so many samples."""
    chosen: list[Batch] = []
    count = 0
    for batch in batches:
        chosen.append(batch)
        count += batch.size
        if count >= most:
            break
    return chosen
