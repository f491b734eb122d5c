"""Sessions that give tensors as they lie in memory; for the child process.

ONNX Runtime keeps what convolutions make in blocks of channels, [N, C / b, ..., b] (its "NCHWc"),
and reorders it wherever another operator or the user reads it. Who looks at all tensors of a model
only for what does not depend on the order pays half an inference for that. Here the graph that the
runtime has made is edited, so that it gives out tensors before they are reordered, and loaded as it
is: the same kernels on the same numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

__all__ = ["BlockedSession", "blocked_session", "keep_optimized"]

_DOMAIN = "com.microsoft.nchwc"
#: Sizes of blocks that processors have.
_BLOCKS = (4, 8, 16, 32)


@dataclasses.dataclass(frozen=True)
class BlockedSession:
    """A session, and which of its outputs have another name and layout than was asked for.

    Attributes:
        session: The session.
        asked: The name of an output that was asked for, by the session's name for it.
        block: Channels that lie together in these.
    """

    session: ort.InferenceSession
    asked: Mapping[str, str]
    block: int


def blocked_session(
    model: str | bytes, threads: int, outputs: Collection[str]
) -> BlockedSession | None:
    """Load a model so that outputs are given as the runtime has them.

    Args:
        model: Its path, or its bytes.
        threads: Threads for one operator.
        outputs: The outputs in question.

    Returns:
        None where the runtime reorders none of them, does not take its own graph, or cannot write
        it down.
    """
    try:
        block = _block_size()
        if block is None:
            return None
        with tempfile.TemporaryDirectory(prefix="onnxopt-blocked-") as folder:
            path = os.path.join(folder, "model.onnx")
            _optimized(model, path, threads)
            names = _let_through(path, frozenset(outputs), block)
            if not names:
                return None
            session = _as_it_is(path, threads)
    except Exception:  # the runtime's have no class in common; the model runs without this
        return None
    return BlockedSession(session, {given: name for name, given in names.items()}, block)


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def keep_optimized(options: ort.SessionOptions, path: str) -> None:
    """Have the graph that would run written to a file when a session is made."""
    options.optimized_model_filepath = path
    prefix = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(f"{prefix}file_name", "weights")
    options.add_session_config_entry(f"{prefix}min_size_in_bytes", "1024")


def _optimized(model: str | bytes, path: str, threads: int) -> None:
    """Have the graph that would run written to a file."""
    options = _options(threads)
    keep_optimized(options, path)
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _as_it_is(path: str, threads: int) -> ort.InferenceSession:
    options = _options(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _let_through(path: str, outputs: frozenset[str], block: int) -> dict[str, str]:
    """Take away the nodes that reorder outputs which nothing else reads; what is given instead."""
    import onnx  # slow to import and seldom needed

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    read = set(_read(graph))
    names: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.domain == _DOMAIN and node.op_type == "ReorderOutput":
            numbers = {each.name: each.i for each in node.attribute}
            source, target = node.input[0], node.output[0]
            whole = numbers["channels"] % block == 0 and not numbers.get("channels_last", 0)
            if whole and target in outputs and target not in read and source not in names.values():
                names[target] = source
                continue
        kept.append(node)
    if names:
        del graph.node[:]
        graph.node.extend(kept)
        for output in graph.output:
            if output.name in names:
                output.name = names[output.name]
        # What was said of shapes is of logical ones, which are the same.
        del graph.value_info[:]
        onnx.save(model, path)
    return names


def _read(graph: Any) -> Iterator[str]:
    """Names that nodes read, those of bodies too."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _read(body)
                yield from (each.name for each in body.output)


@functools.cache
def _block_size() -> int | None:
    """How many channels lie together, found out on a small convolution; None for no blocks."""
    import onnx.helper as oh
    import onnx.numpy_helper

    channels, size = 32, 2
    weights = np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1)
    port = [1, channels, size, size]
    graph = oh.make_graph(
        [oh.make_node("Conv", ["x", "w"], ["y"])],
        "probe",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, port)],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, port)],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    opset = [oh.make_opsetid("", 13)]
    model = oh.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    x = np.arange(channels * size * size, dtype=np.float32).reshape(port)
    with tempfile.TemporaryDirectory(prefix="onnxopt-blocked-") as folder:
        path = os.path.join(folder, "model.onnx")
        _optimized(model, path, 1)
        names = _let_through(path, frozenset(["y"]), channels)
        if not names:
            return None
        (raw,) = _as_it_is(path, 1).run([names["y"]], {"x": x})
    for block in _BLOCKS:
        parted = x.reshape(1, channels // block, block, size, size)
        if np.array_equal(raw.reshape(-1), np.moveaxis(parted, 2, -1).reshape(-1)):
            return block
    return None
