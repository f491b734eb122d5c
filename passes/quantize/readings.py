"""What is known of the input of a product, as it is or divided by factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxopt.calibration import Gram, GramObserver, Observations, Rows
from onnxopt.numerics.smoothing import by_column
from onnxopt.regions import Product

from .layers import layer_input
from .numbers import Range

__all__ = ["GRAM_ROWS", "Reading", "reading_of"]

Array = np.ndarray[Any, Any]

#: Rows of each sample that go into a Gram matrix.
GRAM_ROWS = 128


@dataclasses.dataclass(frozen=True)
class Reading:
    """A product, and what calibration saw of what it multiplies.

    Attributes:
        product: The product; its weights are those that are multiplied by the input in question.
        range: What the input should cover; None where it was not seen.
        seen: Its Gram matrix and mean, before any division; None where it was not looked at.
        mean: Mean of its rows, float64 [groups, K]; None where it is not known.
        factors: By column, [groups, K], what the input is divided by; None for nothing.
    """

    product: Product
    range: Range | None
    seen: GramObserver | None
    mean: Array | None
    factors: Array | None = None

    def gram(self) -> Array | None:
        """Mean of ``x^T x`` over the rows x of the input, [groups, K, K]."""
        if self.seen is None or self.seen.gram is None:
            return None
        gram = self.seen.gram / max(1, self.seen.count)
        if self.factors is not None:
            gram /= self.factors[:, :, None] * self.factors[:, None, :]
        return np.asarray(gram)

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
    seen = _gram(product, observations)
    mean = _mean_row(product, observations) if seen is None else seen.mean
    return Reading(product, ranges.get(name), seen, mean)


def _mean_row(product: Product, observations: Observations) -> Array | None:
    name, spec = product.activation.name or "", Rows(layer_input(product))
    if spec not in observations.observers.get(name, {}):
        return None
    rows = observations.get(name, spec).rows
    return np.asarray(rows.mean(axis=0, dtype=np.float64)) if len(rows) else None


def _gram(product: Product, observations: Observations) -> GramObserver | None:
    name, spec = product.activation.name or "", Gram(layer_input(product), GRAM_ROWS)
    if spec not in observations.observers.get(name, {}):
        return None
    found = observations.get(name, spec)
    return None if found.gram is None else found
