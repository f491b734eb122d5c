"""The numbers that a plan is carried out with: ranges of tensors, weights and biases."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from onnxopt.regions import Product

from .parameters import Parameters, for_range
from .recurrent import RecurrentWeights
from .weights import Weights

__all__ = ["Divided", "Numbers", "Range"]

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Divided:
    """A product whose input is divided first, so that its channels are even.

    Attributes:
        factors: What the channels are divided by, float64, of a shape that broadcasts against the
            input.
        range: Of the divided input.
        weights: Weights that make up for the factors, in 8 bits.
        bias: The corrected bias; the product's own when None.
    """

    factors: np.ndarray
    range: Range
    weights: Weights
    bias: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What calibration found and recovery worked out.

    Attributes:
        signed: Signed activations rather than unsigned ones.
        ranges: What each tensor should cover, by name.
        weights: 8-bit weights, by key of the product.
        biases: Corrected biases, by key of the product; the model's own where there is none.
        divided: Products that can have an even input, by key.
        bits: Of activations, 8 or 16.
        recurrent: 8-bit weights of recurrent layers, by key.
    """

    signed: bool
    ranges: Mapping[str, Range]
    weights: Mapping[str, Weights]
    biases: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    divided: Mapping[str, Divided] = dataclasses.field(default_factory=dict)
    bits: int = 8
    recurrent: Mapping[str, RecurrentWeights] = dataclasses.field(default_factory=dict)

    def covering(
        self, low: float, high: float, bounds: tuple[float, float] = (-math.inf, math.inf)
    ) -> Parameters:
        """Parameters of an activation with this range; see `for_range`."""
        return for_range(low, high, self.signed, bounds, self.bits)

    def bias(self, product: Product) -> np.ndarray | None:
        """The bias of a product."""
        return self.biases.get(product.key, product.bias)
