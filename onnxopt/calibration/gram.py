"""The Gram matrix of a linear layer's input: which inputs go together, and how strongly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from onnxopt.calibration.activation import Activation, UnobservableError
from onnxopt.calibration.observer import Observer, ObserverSpec
from onnxopt.numerics.layer_inputs import LayerInput

__all__ = ["Gram", "GramObserver"]

Array = np.ndarray[Any, Any]

_FEW = 8


class GramObserver(Observer):
    """Sums of ``x^T x`` and of x over the rows x of a layer's input, group by group.

    Sums are float64: merging agrees with one pass to rounding.

    Attributes:
        gram: float64 [groups, K, K]; without elements when nothing was seen.
        sums: float64 [groups, K].
        count: How many rows were seen.
    """

    def __init__(self, layer: LayerInput | None, most_rows: int, most_columns: int) -> None:
        self._layer, self._most_rows, self._most_columns = layer, most_rows, most_columns
        self.gram: Array = np.zeros((0, 0, 0))
        self.sums: Array = np.zeros((0, 0))
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
        # One by one: NumPy has a matrix times its own transpose computed by halves.
        few = len(rows) <= _FEW
        gram = np.stack([x.T @ x for x in rows]) if few else rows.transpose(0, 2, 1) @ rows
        self._add(gram, rows.sum(axis=1), rows.shape[1])

    def merge(self, other: Self) -> None:  # noqa: D102
        if not other.gram.size:
            return
        if self.gram.size and self.gram.shape != other.gram.shape:
            raise ValueError("the Gram matrices have different sizes")
        self._add(other.gram, other.sums, other.count)

    def _add(self, gram: Array, sums: Array, count: int) -> None:
        if not self.gram.size:
            self.gram, self.sums = np.zeros(gram.shape), np.zeros(sums.shape)
        elif self.gram.shape != gram.shape:
            raise UnobservableError("has another number of columns in another sample")
        self.gram += gram
        self.sums += sums
        self.count += count

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
        made.gram, made.sums, made.count = arrays["gram"], arrays["sums"], count
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
