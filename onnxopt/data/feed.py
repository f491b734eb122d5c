"""What a feed is, and which inputs it is for."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.errors import FeedError

__all__ = ["Feed", "InputSpec", "cast", "fitted", "input_named", "required_inputs"]

#: From input name to array (to a list of arrays for a sequence).
Feed = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What has to be known of an input to feed it, without the model that it belongs to.

    Attributes:
        name: Its name.
        dtype: Its element type, if the model says.
        shape: Its sizes, None where they are open; None when the rank is not known.
    """

    name: str
    dtype: ir.DataType | None
    shape: tuple[int | None, ...] | None

    @classmethod
    def of(cls, value: ir.Value) -> InputSpec:
        """That of an input."""
        shape = None
        if value.shape is not None:
            # Exporters of Paddle models write -1 for a size that is open.
            shape = tuple(dim if isinstance(dim, int) and dim >= 0 else None for dim in value.shape)
        return cls(value.name or "", value.dtype, shape)


def required_inputs(model: ir.Model) -> list[ir.Value]:
    """Graph inputs that have no default."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def input_named(model: ir.Model, name: str) -> ir.Value:
    """The input of this name.

    Raises:
        FeedError: When there is none; suggests the nearest.
    """
    for value in model.graph.inputs:
        if value.name == name:
            return value
    names = [value.name or "" for value in model.graph.inputs]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(names)}"
    raise FeedError(f"the model has no input '{name}'; {hint}")


def cast(array: np.ndarray[Any, Any], value: ir.Value | InputSpec, path: pathlib.Path) -> Any:
    """The array in the input's dtype, if no number changes class (float stays float).

    Args:
        array: What was given.
        value: The input that it is for.
        path: Where it came from, for the message.

    Raises:
        FeedError: When floats are given for integers or booleans, or no numbers.
    """
    if value.dtype is None or value.dtype == ir.DataType.STRING:
        return array
    wanted = value.dtype.numpy()
    if array.dtype == wanted:
        return np.ascontiguousarray(array)
    if array.dtype.kind in "OSU":
        raise FeedError(f"array '{value.name}' of {path} holds no numbers, but {array.dtype}")
    if array.dtype.kind == "f" and np.dtype(wanted).kind in "iub":
        raise FeedError(
            f"array '{value.name}' of {path} is {array.dtype}, but the input takes {wanted}"
        )
    return np.ascontiguousarray(array.astype(wanted))


def fitted(array: np.ndarray[Any, Any], spec: InputSpec, path: pathlib.Path) -> Any:
    """The array in the input's dtype, if it has the input's shape.

    Args:
        array: What was given.
        spec: The input that it is for.
        path: Where it came from, for the message.

    Raises:
        FeedError: When it does not fit.
    """
    made = cast(array, spec, path)
    if spec.shape is not None and (
        array.ndim != len(spec.shape)
        or any(
            wanted is not None and wanted != size
            for wanted, size in zip(spec.shape, array.shape, strict=True)
        )
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in spec.shape)
        raise FeedError(
            f"a sample of array '{spec.name}' of {path} has shape {list(array.shape)}, but the "
            f"input takes [{wanted}]"
        )
    return made
