"""Run a model while its weights are being tried out, and say how far its outputs are off."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from onnxopt.accuracy import Fidelity, Score, fidelity
from onnxopt.model import save
from onnxopt.runtime.trial import Feed
from onnxopt.workbench import Workbench

__all__ = ["Trials"]


class Trials:
    """Measures a model in memory on samples that it may learn from.

    Args:
        model: The model; its weights may change between measurements.
        workbench: Where to run the model.
        feeds: The samples.
    """

    def __init__(self, model: ir.Model, workbench: Workbench, feeds: Sequence[Feed]) -> None:
        self._model = model
        self._workbench = workbench
        self._feeds = feeds
        self._names = [value.name or "" for value in model.graph.outputs]
        self._before, _ = self._run_model(False)
        self._source: tuple[list[list[Any]], float | None] | None = None

    def noise(self) -> float:
        """Noise over signal power of the worst output, against the model as it was at first."""
        outputs, _ = self._run_model(False)
        decibels = fidelity(self._before, outputs, self._names).sqnr_db
        return float(10 ** (-decibels / 10))

    def fidelity_to_source(self, *, score: bool) -> Fidelity:
        """How true the model is to the original.

        Args:
            score: Whether the user's own measure is asked for, too, if there is one.
        """
        if self._source is None:
            self._source = self._run(self._workbench.source, score)
        expected, before = self._source
        outputs, after = self._run_model(score)
        found = fidelity(expected, outputs, self._names)
        if before is None or after is None:
            return found
        return dataclasses.replace(found, score=Score(before, after))

    def _run_model(self, score: bool) -> tuple[list[list[Any]], float | None]:
        with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
            path = pathlib.Path(folder) / "model.onnx"
            save(self._model, path)
            return self._run(path, score)

    def _run(self, path: pathlib.Path, score: bool) -> tuple[list[list[Any]], float | None]:
        worker, evaluate = self._workbench.worker, self._workbench.budget.evaluate
        info = worker.open(path, threads=self._workbench.threads)
        try:
            outputs = [worker.run(info.session, feed) for feed in self._feeds]
        finally:
            worker.close(info.session)
        return outputs, evaluate(os.fspath(path)) if score and evaluate is not None else None
