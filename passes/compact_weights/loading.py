"""How long the runtime takes to load the coded model, and what to give up where it is too long."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Collection, Sequence

import onnx_ir as ir

from onnxopt.model import save
from onnxopt.parallel.quiet import quiet
from onnxopt.runtime.worker import Worker

from .choice import Offer, ranked
from .coded import CodedTensors, SharedConstants
from .sparse_form import SparseForm

__all__ = ["LoadLimit", "load_seconds"]

#: What decoders make of so many bytes is not worth a measurement: it takes some milliseconds.
_UNNOTICED_BYTES = 1 << 23
#: Nor is so much more time for loading noticed.
_UNNOTICED_SECONDS = 0.02
#: Each model is loaded so often, in a new process each time, and the shortest time counts.
_LOADS = 3
#: After so many measurements everything stays dense.
_MOST_MEASUREMENTS = 4
#: Where the time has to be lowered, it is aimed at so much of what is allowed to be added.
_AIM = 0.9
#: Steps in which the slack grows.
_STEP = 1.25
_MOST_SLACK = 1e3


class LoadLimit:
    """Finds the slack with which the coded model loads quickly enough.

    More slack lets lighter codes win over shorter ones, and in the end the tensor as it is. The
    time beyond the dense model's is about proportional to the bytes that decoders make.

    Args:
        max_ratio: How many times as long as the dense model the coded one may load; 0 for no limit.
    """

    def __init__(self, max_ratio: float) -> None:
        self._max_ratio = max_ratio
        self._measurements = 0
        self._dense: float | None = None

    def next_slack(
        self,
        model: ir.Model,
        coded: Sequence[CodedTensors | SparseForm],
        shared: SharedConstants,
        choices: Collection[Sequence[Offer]],
        slack: float,
    ) -> float | None:
        """More slack to try, or None when the model loads quickly enough.

        Args:
            model: The model with decoders.
            coded: What it has of them.
            shared: The constants that they share.
            choices: The offers for each tensor.
            slack: The slack with which the decoders were chosen.
        """
        made = _made(choices, slack)
        if not self._max_ratio or not coded or made < _UNNOTICED_BYTES:
            return None
        if self._dense is None:
            for each in coded:
                each.remove()
            self._dense = load_seconds(model)
            for each in coded:
                each.insert(shared)
        dense, compact = self._dense, load_seconds(model)
        most = max((self._max_ratio - 1) * dense, _UNNOTICED_SECONDS)
        if compact - dense <= most:
            return None
        self._measurements += 1
        if self._measurements < _MOST_MEASUREMENTS:
            allowed = made * most / (compact - dense) * _AIM
            while (slack := slack * _STEP + 0.01) < _MOST_SLACK:
                if _made(choices, slack) <= allowed:
                    return slack
        return _MOST_SLACK


def _made(choices: Collection[Sequence[Offer]], slack: float) -> int:
    """Bytes that the decoders make that are taken with this slack."""
    return sum(ranked(each, slack)[0].memory for each in choices)


def load_seconds(model: ir.Model) -> float:
    """How long processors work to load a model on one thread, in a new process each time.

    Raises:
        RuntimeRefusalError: When the runtime does not load it.
        RuntimeCrashError: When it dies or hangs.
    """
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder, quiet():
        path = pathlib.Path(folder) / "model.onnx"
        save(model, path)
        seconds = []
        for _ in range(_LOADS):
            with Worker() as worker:
                seconds.append(worker.open(path).load_cpu_seconds)
    return min(seconds)
