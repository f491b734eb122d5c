"""Extremes and means of a tensor, channel by channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from onnxopt.calibration.activation import Activation, UnobservableError
from onnxopt.calibration.observer import Observer, ObserverSpec
from onnxopt.numerics.exact_sum import ExactSum

__all__ = ["ChannelObserver", "Channels"]

Array = np.ndarray[Any, Any]


class ChannelObserver(Observer):
    """What each channel along an axis looks like.

    Args:
        axis: The axis of the channels; negative ones count from the end.

    Attributes:
        low: Least number by channel, [C]; without elements when nothing was seen.
        high: Greatest number by channel, [C].
        elements: How many numbers were seen of each channel.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.low: Array = np.zeros(0, np.float32)
        self.high: Array = np.zeros(0, np.float32)
        self.elements = 0
        self._sums = ExactSum((0,))

    def update(self, activation: Activation) -> None:  # noqa: D102
        low, high = activation.channel_extremes(self.axis)
        if not self.elements:
            self.low, self.high, self._sums = low, high, ExactSum((len(low),))
        elif len(low) != len(self.low):
            raise UnobservableError(
                f"has {len(self.low)} channels in one sample and {len(low)} in another"
            )
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.elements += activation.numbers.size // len(low)
        sums = activation.channel_sums(self.axis)
        if not np.isfinite(sums).all():
            raise UnobservableError("has a sum that overflows")
        self._sums.add(sums)

    def merge(self, other: Self) -> None:  # noqa: D102
        if not other.elements:
            return
        if not self.elements:
            self.low, self.high = other.low, other.high
            self._sums = ExactSum((len(other.low),))
        elif len(self.low) != len(other.low):
            raise ValueError("the numbers of channels differ")
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.elements += other.elements
        self._sums.merge(other._sums)

    @property
    def absmax(self) -> Array:
        """Greatest magnitude by channel, [C]."""
        return np.asarray(np.maximum(np.abs(self.low), np.abs(self.high)))

    @property
    def mean(self) -> Array:
        """Mean by channel over all numbers of all samples, float64 [C]."""
        return self._sums.value / max(1, self.elements)

    def arrays(self) -> dict[str, Array]:  # noqa: D102
        return {
            "low": self.low,
            "high": self.high,
            "counts": np.array([self.axis, self.elements]),
            "limbs": self._sums.limbs,
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, Array]) -> Self:  # noqa: D102
        axis, elements = map(int, arrays["counts"])
        made = cls(axis)
        made.low, made.high, made.elements = arrays["low"], arrays["high"], elements
        made._sums = ExactSum((len(arrays["low"]),), arrays["limbs"])
        return made


@dataclasses.dataclass(frozen=True)
class Channels(ObserverSpec[ChannelObserver]):
    """Ask for extremes and means along an axis."""

    kind: ClassVar[str] = "channels"
    observer: ClassVar[type[Observer]] = ChannelObserver
    turn: ClassVar[int] = 0
    axis: int = 1

    @property
    def takes_blocks(self) -> bool:  # noqa: D102
        return self.axis == 1

    def start(self) -> ChannelObserver:  # noqa: D102
        return ChannelObserver(self.axis)
