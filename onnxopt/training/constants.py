"""Numbers of values that are the same in every run."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.training.stored import stored

__all__ = ["Constants"]


class Constants(Mapping[ir.Value, NDArray[Any]]):
    """Numbers by value; those of the file are read when they are asked for.

    Args:
        weights: Values that may change, and are no constants.
    """

    def __init__(self, weights: Container[ir.Value]) -> None:
        self._weights = weights
        self._known: dict[ir.Value, NDArray[Any]] = {}

    def __getitem__(self, value: ir.Value) -> NDArray[Any]:
        if value not in self._known:
            tensor = None if value in self._weights else stored(value)
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                raise KeyError(value)
            self._known[value] = np.asarray(tensor.numpy())
        return self._known[value]

    def __contains__(self, value: object) -> bool:
        if value in self._known:
            return True
        if not isinstance(value, ir.Value) or value in self._weights:
            return False
        tensor = stored(value)
        return tensor is not None and tensor.dtype != ir.DataType.STRING

    def __iter__(self) -> Iterator[ir.Value]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, value: ir.Value, array: NDArray[Any]) -> None:
        """Take note of numbers that were worked out."""
        self._known[value] = array
