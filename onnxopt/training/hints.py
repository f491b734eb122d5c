"""Hints: inner tensors of the student are led towards the teacher's.

Romero et al., 2015, "FitNets: Hints for Thin Deep Nets" (arXiv:1412.6550): where the student has
other channels than the teacher, a linear map learns to translate, and is thrown away in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from onnxopt.errors import OptionError
from onnxopt.training.plans import OutputPlan

__all__ = ["Projection", "projections"]


class Projection(nn.Module):
    """A linear map along one axis, the same at each position.

    Args:
        inputs: Channels of the student.
        outputs: Channels of the teacher.
        axis: Axis of the channels.
    """

    def __init__(self, inputs: int, outputs: int, axis: int) -> None:
        super().__init__()
        self._axis = axis
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, tensor: Tensor) -> Tensor:
        """The tensor with the teacher's number of channels."""
        projected: Tensor = self.linear(tensor.movedim(self._axis, -1)).movedim(-1, self._axis)
        return projected


def projections(
    plans: Sequence[OutputPlan],
    student: Mapping[str, np.ndarray[Any, Any]],
    teacher: Mapping[str, np.ndarray[Any, Any]],
) -> dict[str, Projection]:
    """A projection for each hint whose channels differ.

    Raises:
        OptionError: When a hint differs in anything but its channels.
    """
    found: dict[str, Projection] = {}
    for plan in plans:
        if not plan.is_hint:
            continue
        mine, wanted = student[plan.name].shape, teacher[plan.name].shape
        if mine == wanted:
            continue
        axis = plan.class_axis
        if len(mine) != len(wanted) or any(
            one != other
            for at, (one, other) in enumerate(zip(mine, wanted, strict=True))
            if at != axis
        ):
            raise OptionError(
                f"hint '{plan.name}' has shape {list(wanted)} in the teacher and {list(mine)} in "
                "the student; only the number of channels may differ"
            )
        found[plan.name] = Projection(mine[axis], wanted[axis], axis)
    return found
