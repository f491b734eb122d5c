"""Ctrl-C while a training runs: no step is left half-way."""

from __future__ import annotations

import signal
import threading
from typing import Any

__all__ = ["InterruptedTrainingError", "StopRequest"]


class InterruptedTrainingError(KeyboardInterrupt):
    """The user stopped the training; what it had reached is in the checkpoint, if there is one.

    A Ctrl-C like any other: whoever goes on after errors must not go on after this.
    """


class StopRequest:
    """Turns the first Ctrl-C into a wish, so that no step is left half-way; the second one ends.

    Attributes:
        requested: Whether it was pressed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._old: Any = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)

    def _ask(self, *_: object) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._old or signal.default_int_handler)
