"""Least and greatest number of a tensor, and their means over the samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from onnxopt.calibration.activation import Activation
from onnxopt.calibration.observer import Observer, ObserverSpec
from onnxopt.numerics.exact_sum import ExactSum

__all__ = ["Range", "RangeObserver"]


class RangeObserver(Observer):
    """Exact extremes.

    Attributes:
        low: Least number in any sample; infinity when nothing was seen.
        high: Greatest number in any sample; minus infinity when nothing was seen.
        elements: How many numbers were seen.
        samples: How many samples had any.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.elements = self.samples = 0
        self._sums = ExactSum((2,))

    def update(self, activation: Activation) -> None:  # noqa: D102
        low, high = activation.extremes
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.elements += activation.numbers.size
        self.samples += 1
        self._sums.add((low, high))

    def merge(self, other: Self) -> None:  # noqa: D102
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.elements += other.elements
        self.samples += other.samples
        self._sums.merge(other._sums)

    @property
    def mean_range(self) -> tuple[float, float]:
        """Means over the samples of their least and their greatest number.

        What others call a moving average, without its dependence on the samples' order.
        """
        low, high = self._sums.value / max(1, self.samples)
        return float(low), float(high)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:  # noqa: D102
        return {
            "extremes": np.array([self.low, self.high]),
            "counts": np.array([self.elements, self.samples]),
            "limbs": self._sums.limbs,
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Self:  # noqa: D102
        made = cls()
        made.low, made.high = map(float, arrays["extremes"])
        made.elements, made.samples = map(int, arrays["counts"])
        made._sums = ExactSum((2,), arrays["limbs"])
        return made


@dataclasses.dataclass(frozen=True)
class Range(ObserverSpec[RangeObserver]):
    """Ask for extremes."""

    kind: ClassVar[str] = "range"
    observer: ClassVar[type[Observer]] = RangeObserver

    @property
    def takes_blocks(self) -> bool:  # noqa: D102
        return True

    def start(self) -> RangeObserver:  # noqa: D102
        return RangeObserver()
