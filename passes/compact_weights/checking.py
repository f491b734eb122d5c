"""What the runtime makes of a model as a whole, with and without decoders in it."""

from __future__ import annotations

import pathlib
import tempfile
from collections import Counter

import onnx_ir as ir

from onnxopt.model import save
from onnxopt.runtime.worker import shared_worker

__all__ = ["Optimized", "optimized"]


class Optimized:
    """The nodes of the graph that the runtime makes of a model when it loads it.

    Attributes:
        operators: How many there are of each operator, in all graphs.
        names: What they make.
    """

    def __init__(self, nodes: list[tuple[str, tuple[str, ...]]]) -> None:
        self.operators = Counter(op_type for op_type, _ in nodes)
        self.names = frozenset(name for _, outputs in nodes for name in outputs)


def optimized(model: ir.Model) -> Optimized:
    """Let the runtime load a model at its default level and look at the graph it would run.

    Raises:
        RuntimeRefusalError: When the runtime does not take the model.
        RuntimeCrashError: When it dies or hangs.
    """
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
        path = pathlib.Path(folder) / "model.onnx"
        save(model, path)
        return Optimized(shared_worker().optimized_nodes(path))
