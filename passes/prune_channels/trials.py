"""How much a model's outputs move when channels go: measured on calibration samples."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.channels import trace
from onnxopt.model import save
from onnxopt.rewriting import Context
from onnxopt.workbench import Workbench

from .evidence import Evidence
from .weights import prune_reader

__all__ = ["Trials"]

Mask = NDArray[np.bool_]


class Trials:
    """Runs a copy of a model with channels made unread, which is what removal does to its outputs.

    Args:
        model: The model; it is left as it is.
        opset: Version of the standard operators.
        bench: Where to run it.
        samples: On how many samples.
        evidence: What was seen of the layers; those to check with are run here.
        compensate: Whether the inputs that stay take over.
    """

    def __init__(
        self,
        model: ir.Model,
        opset: int,
        bench: Workbench,
        samples: int,
        evidence: Evidence,
        *,
        compensate: bool,
    ) -> None:
        self._model = model.clone()
        self._trace = trace(self._model.graph, opset, model.ir_version)
        self._bench = bench
        self._feeds = evidence.check.first(samples)
        self._evidence = evidence if compensate else None
        self._expected = self._outputs()

    def harm(self, removed: Mask) -> float:
        """Energy of the outputs' error over their own, of the output that suffers most."""
        with self._pruned(removed):
            found = self._outputs()
        signal, noise = (np.zeros(len(self._expected[0])) for _ in range(2))
        for expected, actual in zip(self._expected, found, strict=True):
            for index, (one, other) in enumerate(zip(expected, actual, strict=True)):
                energy, error = _energies(one, other)
                signal[index] += energy
                noise[index] += error
        return float(np.max(noise / np.maximum(signal, 1e-30), initial=0.0))

    @contextlib.contextmanager
    def _pruned(self, removed: Mask) -> Iterator[None]:
        """The copy with some channels unread; afterwards as it was."""
        context = Context(self._model)
        constants = {value: value.const_value for value in self._model.graph.initializers.values()}
        readers = [
            layer
            for layer in self._trace.layers
            if layer.inputs is not None and removed[layer.inputs].any()
        ]
        inputs = [(layer.node, tuple(layer.node.inputs)) for layer in readers]
        beta = [(layer.node, layer.node.attributes.get("beta")) for layer in readers]
        try:
            for layer in readers:
                prune_reader(layer, removed, self._evidence, context, thorough=False)
            yield
        finally:
            for node, before in inputs:
                node.resize_inputs(len(before))
                for index, value in enumerate(before):
                    node.replace_input_with(index, value)
            for node, attribute in beta:
                if attribute is not None:
                    node.attributes["beta"] = attribute
            for value in list(self._model.graph.initializers.values()):
                if value in constants:
                    value.const_value = constants[value]
                else:
                    self._model.graph.initializers.pop(value.name or "")

    def _outputs(self) -> list[list[Any]]:
        worker, threads = self._bench.worker, self._bench.threads
        with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
            path = pathlib.Path(folder) / "model.onnx"
            save(self._model, path)
            info = worker.open(path, threads=threads)
        try:
            return [worker.run(info.session, feed) for feed in self._feeds]
        finally:
            worker.close(info.session)


def _energies(one: Any, other: Any) -> tuple[float, float]:
    """Sums of squares of an output and of its error; an output that is no number has none."""
    left, right = np.asarray(one), np.asarray(other)
    if left.dtype.kind != "f" or left.shape != right.shape:
        return 0.0, 0.0
    left, right = left.astype(np.float64), right.astype(np.float64)
    finite = np.isfinite(left) & np.isfinite(right)
    error = np.where(finite, left - right, 0.0)
    return float(np.square(np.where(finite, left, 0.0)).sum()), float(np.square(error).sum())
