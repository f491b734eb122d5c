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

    Args:
        specs: What to observe.
        skip_unobservable: Stop to look, instead of objecting, when the tensor is not observable.

    Attributes:
        observers: By spec.
        given_up: Why they stopped to look, if they did.
    """

    def __init__(self, specs: Sequence[ObserverSpec[Any]], skip_unobservable: bool) -> None:
        ordered = sorted(specs, key=lambda spec: spec.turn)
        self.observers: dict[ObserverSpec[Any], Observer] = {s: s.start() for s in ordered}
        self.given_up = ""
        self._skip_unobservable = skip_unobservable

    def see(self, value: Any) -> str | None:
        """Show the tensor of a sample to all observers; an empty one has nothing to show."""
        if self.given_up or (isinstance(value, np.ndarray) and value.size == 0):
            return None
        try:
            if not isinstance(value, np.ndarray):
                raise UnobservableError("is no tensor")
            activation = Activation(value)
            for observer in self.observers.values():
                observer.update(activation)
        except UnobservableError as error:
            if not self._skip_unobservable:
                return str(error)
            self.given_up = str(error)
            self.observers = {}
        return None
