"""What an observer is: asked for by a frozen spec, fed activation by activation, merged, stored."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from onnxopt.calibration.activation import Activation

__all__ = ["Observer", "ObserverSpec"]

Array = np.ndarray[Any, Any]


class Observer(abc.ABC):
    """What has been seen of one tensor."""

    @abc.abstractmethod
    def update(self, activation: Activation) -> None:
        """Take in the tensor of one more sample; it is not empty.

        Raises:
            UnobservableError: When the tensor is of a kind that this observer cannot take.
        """

    def miss(self, lot: int) -> None:  # noqa: B027 - most have nothing to do
        """Take note of a sample in which the tensor is empty.

        Args:
            lot: What the sample drew; see `onnxopt.calibration.lots`.
        """

    @abc.abstractmethod
    def merge(self, other: Self) -> None:
        """Take in all that another observer of the same spec has seen.

        Raises:
            ValueError: When the two have seen tensors that do not go together.
        """

    @abc.abstractmethod
    def arrays(self) -> dict[str, Array]:
        """All that it knows."""

    @classmethod
    @abc.abstractmethod
    def restore(cls, arrays: Mapping[str, Array]) -> Self:
        """The inverse of `arrays`."""


T = TypeVar("T", bound=Observer)


@dataclasses.dataclass(frozen=True)
class ObserverSpec(abc.ABC, Generic[T]):
    """What to observe of a tensor. Equal specs give equal observers.

    Attributes:
        kind: Name in files.
        observer: Class of the observer.
        turn: Observers see an activation in this order; those that find extremes for others first.
    """

    kind: ClassVar[str]
    observer: ClassVar[type[Observer]]
    turn: ClassVar[int] = 1

    @property
    def takes_blocks(self) -> bool:
        """Whether it makes no difference, or little, to observers that channels lie together."""
        return False

    @abc.abstractmethod
    def start(self) -> T:
        """An observer that has seen nothing."""

    def restore(self, arrays: Mapping[str, Array]) -> T:
        """The observer that knows what one that was started so has told in `Observer.arrays`."""
        return self.observer.restore(arrays)  # type: ignore[return-value]  # of this spec
