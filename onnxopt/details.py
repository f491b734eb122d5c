"""A closer look at the original and the result: peak memory, load time, and time layer by layer."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pathlib
import tempfile
from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.findings import Layer
from onnxopt.layers import kernel_seconds, layers
from onnxopt.model import load, save, zipped_bytes
from onnxopt.runtime.footprint import Footprint, footprint
from onnxopt.runtime.trial import Feed
from onnxopt.runtime.worker import Worker
from onnxopt.traversal import all_nodes, root_graphs

__all__ = ["Details", "look_closely"]


@dataclasses.dataclass(frozen=True)
class Details:
    """What a closer look at a model showed.

    Attributes:
        footprint: What loading it takes.
        zip_bytes: Size of the zipped files.
        kernel_seconds: Time for one run by the operator that ONNX Runtime chose.
        layers: Its layers, in the order in which they run.
    """

    footprint: Footprint
    zip_bytes: int
    kernel_seconds: dict[str, float]
    layers: list[Layer]


def look_closely(
    path: str | os.PathLike[str], feed: Feed, *, threads: int, seconds: float, worker: Worker
) -> Details:
    """Load a model in a fresh process, then profile it.

    Args:
        path: The model.
        feed: Inputs of each run.
        threads: Threads for one operator.
        seconds: Time to spend on profiled runs.
        worker: Where to profile.

    Raises:
        RuntimeRefusalError: When the runtime does not load or run it.
        RuntimeCrashError: When a process dies or hangs.
    """
    taken = footprint(path, feed, threads)
    model = load(path)
    with _with_names(path, model) as named:
        kernels = worker.profile(named, feed, threads=threads, seconds=seconds)
    return Details(taken, zipped_bytes(path), kernel_seconds(kernels), layers(model, kernels))


@contextlib.contextmanager
def _with_names(path: str | os.PathLike[str], model: ir.Model) -> Iterator[str | os.PathLike[str]]:
    """The path of the model, or of a copy in which every node has a name.

    The runtime makes up names for nodes without one, and does not write them into the optimized
    graph, so what such a node became could not be told. Names are taken away again afterwards.
    """
    nodes = [node for graph in root_graphs(model) for node in all_nodes(graph)]
    nameless = [node for node in nodes if not node.name]
    if not nameless:
        yield path
        return
    taken = {node.name for node in nodes}
    names = (name for number in itertools.count() if (name := f"node {number}") not in taken)
    for node in nameless:
        node.name = next(names)
    try:
        with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
            copy = pathlib.Path(folder) / "model.onnx"
            save(model, copy)
            yield copy
    finally:
        for node in nameless:
            node.name = None
