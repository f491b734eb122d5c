"""Teacher and student side by side: whether they can be compared, and what both answer."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.data import required_inputs
from onnxopt.errors import ModelError

__all__ = ["LookedAt", "alike_pair", "renamed", "same_interface"]

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class LookedAt:
    """Some samples and what both models make of them."""

    feeds: list[Arrays]
    teacher: list[Arrays]
    student: list[Arrays]
    labels: list[np.ndarray[Any, Any]] | None


def same_interface(
    teacher: ir.Model, student: ir.Model, teacher_path: pathlib.Path, student_path: pathlib.Path
) -> None:
    """Both models take the same inputs and give the same outputs, by name."""
    for what, one, other in (
        ("inputs", required_inputs(teacher), required_inputs(student)),
        ("outputs", teacher.graph.outputs, student.graph.outputs),
    ):
        mine = [str(value.name) for value in one]
        theirs = [str(value.name) for value in other]
        if set(mine) != set(theirs):
            raise ModelError(
                f"teacher and student have other {what}: {', '.join(mine) or 'none'} of "
                f"{teacher_path}, {', '.join(theirs) or 'none'} of {student_path}"
            )


def alike_pair(feeds: Sequence[Arrays]) -> tuple[Arrays, Arrays]:
    """Two samples of the same shapes; one twice when there are no two."""
    seen: dict[Any, Arrays] = {}
    for feed in feeds:
        key = tuple((name, array.shape) for name, array in feed.items())
        if key in seen:
            return seen[key], feed
        seen[key] = feed
    return feeds[0], feeds[0]


def renamed(outputs: Arrays, hints: Mapping[str, str]) -> Arrays:
    """A student's outputs with its hints under the teacher's names."""
    renamed = {name: array for name, array in outputs.items() if name not in hints.values()}
    return {**renamed, **{name: outputs[inner] for name, inner in hints.items()}}
