"""The Gram matrix of a linear layer's input: which inputs go together, and how strongly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from onnxopt.calibration.activation import Activation, UnobservableError
from onnxopt.calibration.observer import Observer, ObserverSpec
from onnxopt.numerics.gram import squares
from onnxopt.numerics.layer_inputs import LayerInput

__all__ = ["Gram", "GramObserver"]

Array = np.ndarray[Any, Any]

#: Rows are multiplied when there are so many: products of few take longer for each.
_TOGETHER = 1024


class GramObserver(Observer):
    """Sums of ``x^T x`` and of x over the rows x of a layer's input, group by group.

    Rows wait until there are many, are multiplied in float32 and added in float64: merging agrees
    with one pass to rounding.

    Attributes:
        gram: float64 [groups, K, K]; without elements when nothing was seen.
        sums: float64 [groups, K].
        count: How many rows were seen.
    """

    def __init__(self, layer: LayerInput | None, most_rows: int, most_columns: int) -> None:
        self._layer, self._most_rows, self._most_columns = layer, most_rows, most_columns
        self._gram: Array = np.zeros((0, 0, 0))
        self._sums: Array = np.zeros((0, 0))
        self._pending: list[Array] = []
        self._waiting = 0
        self.count = 0

    def update(self, activation: Activation) -> None:  # noqa: D102
        assert self._layer is not None, "observations from a file are not added to"
        _ = activation.extremes  # refuses what is not finite
        try:
            rows = self._layer.rows(activation.values, self._most_rows)
        except ValueError as error:
            raise UnobservableError(str(error)) from error
        if rows.shape[2] > self._most_columns:
            raise UnobservableError(
                f"would need a Gram matrix of {rows.shape[2]} columns, over {self._most_columns}"
            )
        groups, count, columns = rows.shape
        if not self._gram.size:
            self._gram, self._sums = (
                np.zeros((groups, columns, columns)),
                np.zeros((groups, columns)),
            )
        elif self._sums.shape != (groups, columns):
            raise UnobservableError("has another number of columns in another sample")
        self._pending.append(rows)
        self._waiting += count
        self.count += count
        if self._waiting >= _TOGETHER:
            self._settle()

    def _settle(self) -> None:
        """Add up the rows that wait."""
        if not self._pending:
            return
        rows = np.concatenate(self._pending, axis=1)
        self._pending.clear()
        self._waiting = 0
        self._gram += squares(rows)
        self._sums += rows.sum(axis=1)

    def merge(self, other: Self) -> None:  # noqa: D102
        if not other.gram.size:
            return
        self._settle()
        if not self._gram.size:
            self._gram, self._sums = np.zeros(other.gram.shape), np.zeros(other.sums.shape)
        elif self._gram.shape != other.gram.shape:
            raise ValueError("the Gram matrices have different sizes")
        self._gram += other.gram
        self._sums += other.sums
        self.count += other.count

    @property
    def gram(self) -> Array:  # noqa: D102 - see the class
        self._settle()
        return self._gram

    @property
    def sums(self) -> Array:  # noqa: D102 - see the class
        self._settle()
        return self._sums

    @property
    def mean(self) -> Array:
        """Mean row, float64 [groups, K]."""
        return self.sums / max(1, self.count)

    def arrays(self) -> dict[str, Array]:  # noqa: D102
        settings = np.array([self.count, self._most_rows, self._most_columns])
        return {"gram": self.gram, "sums": self.sums, "settings": settings}

    @classmethod
    def restore(cls, arrays: Mapping[str, Array]) -> Self:  # noqa: D102
        count, most_rows, most_columns = map(int, arrays["settings"])
        made = cls(None, most_rows, most_columns)
        made._gram, made._sums, made.count = arrays["gram"], arrays["sums"], count
        return made


@dataclasses.dataclass(frozen=True)
class Gram(ObserverSpec[GramObserver]):
    """Ask for the Gram matrix of a layer's input.

    Attributes:
        layer: How the tensor becomes rows.
        most_rows: Use at most so many rows of a sample, evenly spread.
        most_columns: Refuse wider layers; memory is 8 * groups * K^2 bytes.
    """

    kind: ClassVar[str] = "gram"
    observer: ClassVar[type[Observer]] = GramObserver
    layer: LayerInput
    most_rows: int = 256
    most_columns: int = 4096

    def start(self) -> GramObserver:  # noqa: D102
        return GramObserver(self.layer, self.most_rows, self.most_columns)
