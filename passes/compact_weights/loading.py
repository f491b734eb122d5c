"""How long the runtime takes to load the coded model, and what to give up where it is too long."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Mapping, Sequence

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


class LoadLimit:
    """Finds the tensors that have to stay dense for the coded model to load quickly enough.

    They are those that save least for what their decoders make. The time beyond the dense model's
    is about proportional to the bytes that decoders make.

    Args:
        max_ratio: How many times as long as the dense model the coded one may load; 0 for no limit.
    """

    def __init__(self, max_ratio: float) -> None:
        self._max_ratio = max_ratio
        self._measurements = 0
        self._dense: float | None = None

    def too_heavy(
        self,
        model: ir.Model,
        coded: Sequence[CodedTensors | SparseForm],
        shared: SharedConstants,
        choices: Mapping[ir.Value, Sequence[Offer]],
        slack: float,
    ) -> set[ir.Value]:
        """Tensors that are to stay dense besides; none when the model loads quickly enough.

        Args:
            model: The model with decoders.
            coded: What it has of them.
            shared: The constants that they share.
            choices: The offers for each tensor that need not stay dense.
            slack: The slack with which the decoders were chosen.
        """
        best = {value: ranked(each, slack)[0] for value, each in choices.items()}
        made = sum(each.memory for each in best.values())
        if not self._max_ratio or not coded or made < _UNNOTICED_BYTES:
            return set()
        if self._dense is None:
            for each in coded:
                each.remove()
            self._dense = load_seconds(model)
            for each in coded:
                each.insert(shared)
        dense, compact = self._dense, load_seconds(model)
        most = max((self._max_ratio - 1) * dense, _UNNOTICED_SECONDS)
        if compact - dense <= most:
            return set()
        self._measurements += 1
        if self._measurements >= _MOST_MEASUREMENTS:
            return set(best)
        allowed = made * most / (compact - dense) * _AIM

        def worth(value: ir.Value) -> float:
            dense_bytes = max(each.nbytes for each in choices[value])
            return (dense_bytes - best[value].nbytes) / max(best[value].memory, 1)

        left: set[ir.Value] = set()
        for value in sorted(best, key=worth):
            if made <= allowed:
                break
            if best[value].memory:
                made -= best[value].memory
                left.add(value)
        return left


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
