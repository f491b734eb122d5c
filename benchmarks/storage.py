"""What compact storage brings, and what it costs: the tables of docs/storage.md.

Usage::

    python -m benchmarks.storage            # what is missing in the results, and the tables
    python -m benchmarks.storage --fresh    # all over again
    python -m benchmarks.storage --page     # only the tables

Weights of 2 dimensions and more are pruned by magnitude, tensor by tensor: float32; float32 numbers
that are integers from -127 to 127 times a scale by channel (`palettize{levels=even}`); or int8
(symmetric, one scale a tensor, behind DequantizeLinear). The numbers that stay are those of trained
models, or normally distributed in ``matmul-1024``. What accuracy is left is not looked at here.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import tempfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from benchmarks import storage_page
from benchmarks.results import Results
from benchmarks.zoo import example_feeds, model_path
from onnxopt.model import from_proto, save, to_proto
from onnxopt.pass_manager import make_pass
from onnxopt.runtime.statistics import ratio
from onnxopt.runtime.trial import race
from onnxopt.runtime.worker import Worker, shared_worker

__all__ = ["main"]

Array = np.ndarray[Any, Any]

_SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
#: Models of which a row takes half a minute are measured at fewer.
_FEWER = {"minilm": (0.0, 0.5, 0.8, 0.9)}
#: Smaller tensors are not pruned; nor are vectors.
_SMALLEST = 256
_RACE_SECONDS = 2.0
_LOADS = 3
#: Options of `palettize` for int8 numbers with a scale for each channel.
_BY_CHANNEL = {"bits": "8", "levels": "even", "min-elements": "256"}
_FASHION_MNIST = pathlib.Path(__file__).parents[1] / "models" / "fashion_mnist"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=tuple(_MODELS), choices=tuple(_MODELS))
    parser.add_argument("--sparsities", nargs="+", type=float, metavar="S")
    parser.add_argument("--fresh", action="store_true", help="measure chosen rows again")
    parser.add_argument("--page", action="store_true", help="write the tables and measure nothing")
    chosen = parser.parse_args(arguments)
    results = Results("storage")
    if not chosen.page:
        for name in chosen.models:
            for kind in ("float32", "int8 by channel", "int8"):
                for sparsity in chosen.sparsities or _FEWER.get(name, _SPARSITIES):
                    key = f"{name}/{kind}/{sparsity}"
                    if chosen.fresh or key not in results:
                        results[key] = _measure(name, kind, sparsity)
                        print(f"{key}: {results[key]}", flush=True)
    storage_page.write(results)


def _measure(name: str, kind: str, sparsity: float) -> dict[str, Any]:
    proto, feed = _MODELS[name]()
    float_bytes = proto.ByteSize()
    _prune(proto, sparsity)
    if kind == "int8":
        _quantize(proto)
    if kind == "int8 by channel":
        narrowed = from_proto(proto)
        make_pass("palettize", _BY_CHANNEL).run(narrowed)
        proto = to_proto(narrowed)
    with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
        paths = {
            each: pathlib.Path(folder) / f"{each}.onnx" for each in ("dense", "compact", "coo")
        }
        model = from_proto(proto)
        save(model, paths["dense"])
        outcome = make_pass("compact-weights").run(model)
        save(model, paths["compact"])
        onnx.save(_with_sparse_initializers(proto), paths["coo"])
        files = {each: path.read_bytes() for each, path in paths.items()}
        samples = race(
            shared_worker("benchmark"),
            [paths["dense"], paths["compact"]],
            feed,
            seconds=_RACE_SECONDS,
        )
        return {
            "float_bytes": float_bytes,
            "bytes": {each: len(content) for each, content in files.items()},
            "zip_bytes": {
                each: len(zlib.compress(files[each], 9)) for each in ("dense", "compact")
            },
            "codes": dict(outcome.rewritten),
            "refused": len(outcome.refusals),
            "load": {each: _load(path) for each, path in paths.items()},
            "speed": dict(zip(("median", "low", "high"), _ratio(samples), strict=True)),
        }


def _ratio(samples: list[list[float]]) -> tuple[float, float, float]:
    found = ratio(*samples)
    return found.median, found.low, found.high


def _load(path: pathlib.Path) -> dict[str, float]:
    """Seconds to create a session, and by how much the peak of memory rises, in new processes."""
    seconds, peaks = [], []
    for _ in range(_LOADS):
        with Worker() as worker:
            before = worker.peak_memory()
            seconds.append(worker.open(path).load_seconds)
            peaks.append(worker.peak_memory() - before)
    return {"seconds": min(seconds), "peak_bytes": statistics.median(peaks)}


# The models


def _fashion_mnist() -> tuple[onnx.ModelProto, dict[str, Any]]:
    with np.load(_FASHION_MNIST / "calibration.npz") as arrays:
        feed = {"image": arrays["image"][:1]}
    return onnx.load(_FASHION_MNIST / "fashion_mnist.onnx"), feed


def _zoo(name: str) -> Callable[[], tuple[onnx.ModelProto, dict[str, Any]]]:
    return lambda: (onnx.load(model_path(name)), dict(example_feeds(name)))


def _matmul() -> tuple[onnx.ModelProto, dict[str, Any]]:
    size = 1024
    weights = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "matmul",
        [make("x", onnx.TensorProto.FLOAT, ["n", size])],
        [make("y", onnx.TensorProto.FLOAT, ["n", size])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    return model, {"x": np.ones((1, size), np.float32)}


_MODELS: Mapping[str, Callable[[], tuple[onnx.ModelProto, dict[str, Any]]]] = {
    "matmul-1024": _matmul,
    "fashion-mnist": _fashion_mnist,
    "lite0-folded": _zoo("lite0-folded"),
    "minilm": _zoo("minilm"),
}


# What is done to their weights


def _weights(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [
        tensor
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and len(tensor.dims) >= 2
        and np.prod(tensor.dims) >= _SMALLEST
    ]


def _prune(proto: onnx.ModelProto, sparsity: float) -> None:
    for tensor in _weights(proto):
        array = onnx.numpy_helper.to_array(tensor).copy()
        count = round(array.size * sparsity)
        smallest = np.argpartition(np.abs(array).reshape(-1), max(count - 1, 0))[:count]
        array.reshape(-1)[smallest] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _quantize(proto: onnx.ModelProto) -> None:
    """Weights as int8 with a scale, and DequantizeLinear in front of what reads them."""
    nodes = []
    for tensor in _weights(proto):
        array = onnx.numpy_helper.to_array(tensor)
        scale = np.float32(max(np.abs(array).max(), 1e-30) / 127)
        name = tensor.name
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(np.round(array / scale).astype(np.int8), f"{name}_int8")
        )
        proto.graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{name}_scale"))
        nodes.append(
            onnx.helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name])
        )
    rest = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes, *rest])


def _with_sparse_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX's own sparse form, int64 coordinates, for every pruned tensor."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    kept = []
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).reshape(-1)
        if array.size < _SMALLEST or len(tensor.dims) < 2 or array.dtype.kind not in "fi":
            kept.append(tensor)
            continue
        where = np.flatnonzero(array).astype(np.int64)
        copy.graph.sparse_initializer.append(
            onnx.helper.make_sparse_tensor(
                onnx.numpy_helper.from_array(array[where], tensor.name),
                onnx.numpy_helper.from_array(where, f"{tensor.name}_where"),
                tensor.dims,
            )
        )
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    return copy


if __name__ == "__main__":
    main()
