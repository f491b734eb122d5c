"""What is known of the input of a product, as it is or divided by factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxopt.calibration import Observations, Rows, RowsObserver
from onnxopt.numerics.smoothing import by_column
from onnxopt.regions import Product

from .layers import layer_input
from .numbers import Range

__all__ = ["FEW_ROWS", "Reading", "reading_of", "rows_to_round_by"]

Array = np.ndarray[Any, Any]

#: Rows to choose ranges by take so many bytes for each layer, those to round weights by so many.
FEW_ROWS, _MANY_ROWS = 1 << 20, 16 << 20


@dataclasses.dataclass(frozen=True)
class Reading:
    """A product, and what calibration saw of what it multiplies.

    Attributes:
        product: The product; its weights are those that are multiplied by the input in question.
        range: What the input should cover; None where it was not seen.
        seen: Rows of it, before any division; None where it was not looked at.
        mean: Mean of its rows, float64 [groups, K]; None where it is not known.
        factors: By column, [groups, K], what the input is divided by; None for nothing.
    """

    product: Product
    range: Range | None
    seen: RowsObserver | None
    mean: Array | None
    factors: Array | None = None

    def gram(self) -> Array | None:
        """Mean of ``x^T x`` over the rows x of the input, [groups, K, K]."""
        if self.seen is None or not self.seen.seen:
            return None
        gram = self.seen.gram()
        if self.factors is not None:
            gram /= self.factors[:, :, None] * self.factors[:, None, :]
        return np.asarray(gram)

    def power(self, matrix: Array) -> float:
        """Mean over the rows of the power of all outputs, with other weights [groups, K, M].

        The Gram matrix tells it too, but takes K^3 operations, and rows are fewer than columns
        where these are many.
        """
        if self.seen is None or not self.seen.seen:
            return 0.0
        rows = self.seen.rows.transpose(1, 0, 2)
        if self.factors is not None:
            rows = rows / self.factors[:, None, :].astype(np.float32)
        outputs = rows @ matrix.astype(np.float32, copy=False)
        return float(np.square(outputs).sum(dtype=np.float64)) / int(rows.shape[1])

    def divided(self, factors: Array, ends: Range) -> Reading:
        """The same product of an input that is divided, with weights that make up for it.

        Args:
            factors: By channel.
            ends: Least and greatest number of the divided input.
        """
        layer = layer_input(self.product)
        matrix = layer.matrix(self.product.weights)
        columns = by_column(factors, matrix.shape[0], matrix.shape[1])
        moved = layer.weights(matrix * columns[:, :, None], self.product.weights.shape)
        weights = np.ascontiguousarray(moved, np.float32)
        return Reading(
            dataclasses.replace(self.product, weights=weights),
            ends,
            self.seen,
            None if self.mean is None else self.mean / columns,
            columns,
        )


def reading_of(
    product: Product, observations: Observations, ranges: Mapping[str, Range]
) -> Reading:
    """What was seen of a product's input."""
    name = product.activation.name or ""
    seen = observations.rows(name, layer_input(product))
    if seen is None or not seen.seen:
        return Reading(product, ranges.get(name), None, None)
    return Reading(product, ranges.get(name), seen, seen.rows.mean(axis=0, dtype=np.float64))


def rows_to_round_by(product: Product) -> Rows:
    """What to observe of a product's input so that its weights can be rounded with care."""
    return Rows(layer_input(product), _MANY_ROWS)
