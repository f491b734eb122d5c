"""What looks at a tensor inside the runtime's child process.

Nothing here, nor in the observers, imports onnx_ir: the child would have to load it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxopt.calibration.activation import Activation, UnobservableError
from onnxopt.calibration.observer import Observer, ObserverSpec

__all__ = ["TensorWatch"]


class TensorWatch:
    """The observers of one tensor, as they travel to the child process and back.

    Sums of floats depend on the order of their terms. So that it makes no difference who observes
    which samples, samples come in pieces (see `onnxopt.calibration.pieces`): each is observed by
    itself, and what was seen of it is then merged into what was seen before.

    Args:
        specs: What to observe.
        skip_unobservable: Stop to look, instead of objecting, when the tensor is not observable.

    Attributes:
        observers: By spec, what was seen of all pieces that were settled.
        given_up: Why they stopped to look, if they did.
    """

    def __init__(self, specs: Sequence[ObserverSpec[Any]], skip_unobservable: bool) -> None:
        self._specs = sorted(specs, key=lambda spec: spec.turn)
        self.observers = self._fresh()
        self.given_up = ""
        self._skip_unobservable = skip_unobservable
        self._piece: dict[ObserverSpec[Any], Observer] | None = None
        self._settled = False

    def _fresh(self) -> dict[ObserverSpec[Any], Observer]:
        return {spec: spec.start() for spec in self._specs}

    def __getstate__(self) -> dict[str, Any]:
        """Observers that have seen nothing do not travel: they are many zeros."""
        state = dict(self.__dict__)
        if not (self._settled or self.given_up):
            del state["observers"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "observers" not in state:
            self.observers = self._fresh()

    @property
    def takes_blocks(self) -> bool:
        """Whether the tensor may be shown with channels that lie together."""
        return all(spec.takes_blocks for spec in self._specs)

    def see(self, value: Any, lot: int | None, block: int = 1) -> str | None:
        """Show the tensor of a sample to all observers; an empty one has nothing to show.

        Args:
            value: The tensor.
            lot: What the sample drew; see `onnxopt.calibration.lots`.
            block: So many channels lie together; see `Activation`.
        """
        if self.given_up:
            return None
        if self._piece is None:
            self._piece = self._fresh()
        if isinstance(value, np.ndarray) and value.size == 0:
            if lot is not None:
                for observer in self._piece.values():
                    observer.miss(lot)
            return None
        try:
            if not isinstance(value, np.ndarray):
                raise UnobservableError("is no tensor")
            activation = Activation(value, lot, block)
            for observer in self._piece.values():
                observer.update(activation)
        except UnobservableError as error:
            return self._object(str(error))
        return None

    def settle(self) -> str | None:
        """End a piece; gives what there is to object to it together with those before."""
        piece, self._piece = self._piece, None
        return None if piece is None or self.given_up else self._merge(piece)

    def merge(self, other: TensorWatch) -> str | None:
        """Take in what another has seen of the next piece, as if it had been settled here."""
        if self.given_up:
            return None
        if other.given_up:
            return self._object(other.given_up)
        return self._merge(other.observers) if other._settled else None

    def _merge(self, piece: dict[ObserverSpec[Any], Observer]) -> str | None:
        if not self._settled:
            self.observers, self._settled = piece, True
            return None
        try:
            for spec, observer in self.observers.items():
                observer.merge(piece[spec])
        except (UnobservableError, ValueError) as error:
            return self._object(str(error))
        return None

    def _object(self, objection: str) -> str | None:
        if not self._skip_unobservable:
            return objection
        self.given_up, self.observers, self._piece = objection, {}, None
        return None
