"""What the user fixes of made-up inputs, and values of inputs written as text."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.data.feed import cast, input_named
from onnxopt.errors import FeedError

__all__ = ["FeedRequest", "check_request", "open_axes", "value_from_text"]


@dataclasses.dataclass(frozen=True)
class FeedRequest:
    """What the user says about made-up inputs.

    Attributes:
        values: Whole inputs, by name.
        shapes: Shapes, by input name; -1 leaves a dimension open.
        seeds: One set of feeds is made with each.
    """

    values: Mapping[str, np.ndarray[Any, Any]] = dataclasses.field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1)


def open_axes(value: ir.Value, request: FeedRequest) -> list[int]:
    """Axes of an input whose size neither the model nor the user fixes."""
    name = value.name or ""
    if name in request.values or value.shape is None:
        return []
    given = request.shapes.get(name)
    return [
        axis
        for axis, dim in enumerate(value.shape)
        if not (isinstance(dim, int) and dim >= 0) and (given is None or given[axis] < 0)
    ]


def check_request(model: ir.Model, request: FeedRequest) -> None:
    """Check that a request names inputs of the model, with the right number of dimensions.

    Raises:
        FeedError: When it does not.
    """
    for name in (*request.values, *request.shapes):
        input_named(model, name)
    for name, shape in request.shapes.items():
        known = input_named(model, name).shape
        if known is not None and len(known) != len(shape):
            raise FeedError(
                f"input '{name}' has {len(known)} dimensions ({known}), not {len(shape)}"
            )


def value_from_text(text: str, value: ir.Value) -> np.ndarray[Any, Any]:
    """Read ``16000`` or ``1,2,3`` or a ``.npy`` file as an input of the value's type.

    Raises:
        FeedError: When the text does not fit.
    """
    if text.endswith(".npy"):
        try:
            array = np.load(text, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise FeedError(f"{text} is not a readable .npy file: {error}") from error
        return np.asarray(cast(array, value, pathlib.Path(text)))
    dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
    try:
        numbers = [
            float(part) if "." in part or "e" in part else int(part) for part in text.split(",")
        ]
    except ValueError as error:
        raise FeedError(
            f"'{text}' is not a value for input '{value.name}': write numbers with commas, or name "
            "an .npy file"
        ) from error
    array = np.array(numbers).astype(dtype)
    shape = () if value.shape is None else tuple(value.shape)
    fixed = [dim if isinstance(dim, int) else 1 for dim in shape]
    if array.size == int(np.prod(fixed)):
        return array.reshape(fixed)
    if len(shape) == 1:
        return array
    if array.size == 1:
        return np.full(fixed, array[0], dtype=dtype)
    raise FeedError(
        f"'{text}' has {array.size} numbers, which do not fit input '{value.name}' {shape}"
    )
