"""What calibration costs and how true its ranges are, beside onnxruntime.quantization.

Usage::

    python -m benchmarks.calibration DATA cost       # seconds and memory by number of samples
    python -m benchmarks.calibration DATA pace       # one sample, paired with plain inference,
                                                     # of lite0-folded and minilm
    python -m benchmarks.calibration DATA fidelity   # the same nodes quantized, other ranges
    python -m benchmarks.calibration DATA page       # only the tables

DATA is the folder of the files that `benchmarks.quantization_data` reads. The model is
efficientnet-lite0 without BatchNorm after onnxopt's exact passes; all look at the same tensors, the
inputs and outputs of Conv and Gemm, and read the same samples one by one; "default" is all that
`quantize` looks at, rows to round weights by among it. Results go to
``benchmarks/results/calibration.json``, tables to ``docs/calibration.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnxopt.passes.infer_shapes import InferShapes
from onnxopt.passes.quantize.observing import requests_for
from onnxopt.passes.quantize.smoothing import smoothing_sites

from benchmarks import calibration_page
from benchmarks.processes import measure
from benchmarks.quantization_data import feeds
from benchmarks.results import Results
from benchmarks.zoo import model_path
from onnxopt.accuracy import fidelity
from onnxopt.calibration import (
    Gram,
    Histogram,
    Observations,
    ObserverSpec,
    Range,
    Rows,
    layer_input,
    observe,
    ranges,
)
from onnxopt.calibration.lots import DRAWN
from onnxopt.calibration.recovery import corrected_bias, recovered_integers
from onnxopt.model import from_proto, load, save, to_proto
from onnxopt.numerics.grids import UINT8, Grid, grid_over
from onnxopt.numerics.layer_inputs import LayerInput
from onnxopt.numerics.weight_scales import absmax_scales, round_to_nearest
from onnxopt.pass_manager import PassManager, parse_pipeline
from onnxopt.regions import Product, products
from onnxopt.runtime.statistics import ratio
from onnxopt.runtime.worker import Worker

__all__ = ["main"]

Array = np.ndarray[Any, Any]
Feed = dict[str, Any]

_MODEL = "lite0-folded"
_OPERATORS = ("Conv", "Gemm")
_COUNTS = {
    "plain": (16, 32, 128, 512),
    "onnxopt default": (16, 32, 128, 512),
    "onnxopt": (16, 32, 128),
    "onnxopt fused": (16, 32, 128, 512),
    "MinMax": (16, 32, 128),
    "Percentile": (16, 32),  # these hold every tensor of every sample: over 50 MB each
    "Entropy": (16, 32),
}
_LIMIT_SECONDS = 600
#: Samples for the pace, each seen twice, and what is observed of which model.
_PACED = 48
_PACES = {
    "lite0-folded": ("onnxopt default", "onnxopt", "onnxopt fused"),
    "minilm": ("onnxopt default",),
}
_CALIBRATED, _JUDGED = range(32), range(32, 96)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("what", choices=("cost", "pace", "fidelity", "page", "one"))
    parser.add_argument("--method", "--tools", choices=tuple(_COUNTS), help="measure only this")
    parser.add_argument("--samples", type=int, help="of one measurement")
    chosen = parser.parse_args(arguments)
    if chosen.what == "one":
        print(json.dumps(_one(chosen.method, chosen.samples, chosen.data)))
        return
    results = Results("calibration")
    if chosen.what == "cost":
        _cost(chosen.data, results, chosen.method)
    elif chosen.what == "pace":
        _pace(chosen.data, results)
    elif chosen.what == "fidelity":
        _fidelity(chosen.data, results)
    calibration_page.write(results)


# Cost


def _cost(data: pathlib.Path, results: Results, only: str | None) -> None:
    for method, counts in _COUNTS.items():
        for count in counts if only in (None, method) else ():
            key = f"cost/{method}/{count}"
            if key in results:
                continue
            command = [sys.executable, "-m", "benchmarks.calibration", str(data), "one"]
            command += ["--method", method, "--samples", str(count)]
            with tempfile.NamedTemporaryFile("w+", suffix=".json") as written:
                process = measure(
                    ["sh", "-c", '"$@" > "$0"', written.name, *command], _LIMIT_SECONDS
                )
                text = written.read()
            row = {"peak_bytes": process.peak_bytes, "code": process.code}
            results[key] = {
                **row,
                **(json.loads(text.splitlines()[-1]) if process.code == 0 else {}),
            }
            print(key, results[key], flush=True)


def _one(method: str, count: int, data: pathlib.Path) -> dict[str, Any]:
    """Seconds from the model's file to observations, and where they went."""
    with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
        path = pathlib.Path(folder) / "model.onnx"
        save(_prepared(), path)
        reading = 0.0

        def samples() -> Iterator[Feed]:
            nonlocal reading
            for index in range(count):
                start = time.perf_counter()
                feed = next(feeds(_MODEL, data, range(index, index + 1)))
                reading += time.perf_counter() - start
                yield feed

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        if method == "plain":
            with Worker() as worker:
                info = worker.open(path)
                for feed in samples():
                    worker.run(info.session, feed)
        elif method.startswith("onnxopt"):
            with Worker() as worker:
                model = load(path)
                observe(model, samples(), _requests(method, model), worker=worker)
        else:
            _peer_ranges(method, path, samples())
        seconds = time.perf_counter() - start - reading
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "grown_bytes": grown * 1024}


def _pace(data: pathlib.Path, results: Results) -> None:
    """Observing a sample against running it, in turn, in one process.

    Rows are kept of `DRAWN` samples: of all of the first ones, later of few.
    """
    for name, methods in _PACES.items():
        _pace_of(name, methods, data, results)


def _pace_of(name: str, methods: tuple[str, ...], data: pathlib.Path, results: Results) -> None:
    model, samples = _prepared(name), list(feeds(name, data, range(_PACED)))
    with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder, Worker() as worker:
        path = pathlib.Path(folder) / "model.onnx"
        save(model, path)
        plain = worker.open(path).session
        for method in methods:
            times: tuple[list[float], list[float]] = [], []

            def paced(times: tuple[list[float], list[float]] = times) -> Iterator[Feed]:
                for feed in [*samples, *samples[::-1]]:
                    start = time.perf_counter()
                    worker.run(plain, feed)
                    middle = time.perf_counter()
                    yield feed
                    times[0].append(middle - start)
                    times[1].append(time.perf_counter() - middle)

            observe(model, paced(), _requests(method, model), worker=worker)
            for part, chosen in (("first", slice(DRAWN)), ("later", slice(DRAWN, None))):
                key = f"pace/{name}/{method}/{part}"
                results[key] = dataclasses.asdict(ratio(times[1][chosen], times[0][chosen]))
                print(key, results[key], flush=True)


_BASIC: tuple[ObserverSpec[Any], ...] = (Range(), Histogram())


def _requests(method: str, model: ir.Model) -> Mapping[str, Sequence[ObserverSpec[Any]]]:
    """What is looked at, by tensor."""
    if method == "onnxopt default":
        InferShapes()(model)
        found = [each for each in products(model.graph) if isinstance(each, Product)]
        requests: Mapping[str, Sequence[ObserverSpec[Any]]]
        requests = requests_for(model, found, smoothing_sites(model), "medium")
        return requests
    tensors = _fused(model) if method.endswith("fused") else _tensors(model)
    return dict.fromkeys(tensors, _BASIC)


def _prepared(name: str = _MODEL) -> ir.Model:
    model = load(model_path(name))
    PassManager(parse_pipeline("exact")).run(model)
    return model


def _tensors(model: ir.Model) -> list[str]:
    """Inputs and outputs of the layers."""
    names: dict[str, None] = {}
    for node in model.graph:
        if node.op_type in _OPERATORS:
            for value in (node.inputs[0], node.outputs[0]):
                assert value is not None
                names[value.name or ""] = None
    return list(names)


def _fused(model: ir.Model) -> list[str]:
    """Inputs of the layers only, so that the runtime may still fuse activations into them."""
    layers = [node for node in model.graph if node.op_type in _OPERATORS]
    return list(dict.fromkeys(node.inputs[0].name or "" for node in layers if node.inputs[0]))


class _Reader:
    """Samples in the way that ONNX Runtime's calibrators ask for them."""

    def __init__(self, samples: Iterator[Feed]) -> None:
        self._samples = samples

    def get_next(self) -> Feed | None:
        return next(self._samples, None)


def _peer_ranges(
    method: str, path: pathlib.Path, samples: Iterator[Feed]
) -> dict[str, tuple[float, float]]:
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
        calibrator = create_calibrator(
            path,
            list(_OPERATORS),
            augmented_model_path=str(pathlib.Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod[method],
        )
        calibrator.collect_data(_Reader(samples))
        found = calibrator.compute_data()
    return {
        name: (float(np.min(each.range_value[0])), float(np.max(each.range_value[1])))
        for name, each in found.items()
    }


# Fidelity at equal placement


def _fidelity(data: pathlib.Path, results: Results) -> None:
    """The inputs of all layers in uint8, weights in int8 by output; only the numbers differ."""
    model = _prepared()
    layers = [node for node in model.graph if node.op_type in _OPERATORS]
    requests: dict[str, list[ObserverSpec[Any]]] = {}
    for node in layers:
        specs = requests.setdefault(_name(node.inputs[0]), [Range(), Histogram()])
        how = _how(node)
        specs.extend(each for each in (Rows(how), Gram(how)) if each not in specs)
    calibrated = [next(feeds(_MODEL, data, range(i, i + 1))) for i in _CALIBRATED]
    with Worker() as worker, tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
        seen = observe(model, calibrated, requests, worker=worker)
        path = pathlib.Path(folder) / "model.onnx"
        save(model, path)
        grids = _grids(seen, layers)
        for method in ("MinMax", "Percentile", "Entropy"):
            found = _peer_ranges(method, path, iter(calibrated))
            grids[method] = {
                name: grid_over(*found.get(name, _ends(seen, name)), UINT8) for name in requests
            }
        expected = _outputs(worker, model, data)
        names = [value.name or "" for value in model.graph.outputs]
        for method, chosen in grids.items():
            for recovery in ("nearest", "recovered"):
                numbers = _numbers(seen, layers, chosen, recovery == "recovered")
                actual = _outputs(worker, _quantized(model, layers, chosen, numbers), data)
                found_fidelity = fidelity(expected, actual, names).outputs[0]
                agreement = found_fidelity.agreement
                assert agreement is not None
                key = f"fidelity/{method}/{recovery}"
                results[key] = {
                    "sqnr_db": found_fidelity.sqnr_db,
                    "agreement": agreement.same / agreement.total,
                }
                print(key, results[key], flush=True)


def _name(value: ir.Value | None) -> str:
    assert value is not None
    return value.name or ""


def _how(node: ir.Node) -> LayerInput:
    how = layer_input(node)
    assert how is not None
    return how


def _ends(seen: Observations, name: str) -> tuple[float, float]:
    extremes = seen.get(name, Range())
    return extremes.low, extremes.high


def _grids(seen: Observations, layers: list[ir.Node]) -> dict[str, dict[str, Grid]]:
    """Grids of each layer's input, by our choices."""
    chosen: dict[str, dict[str, Grid]] = {}
    readers: dict[str, list[ir.Node]] = {}
    for node in layers:
        readers.setdefault(_name(node.inputs[0]), []).append(node)
    for name, nodes in readers.items():
        histogram, extremes = seen.get(name, Histogram()), seen.get(name, Range())
        for method, choose in ranges.CHOICES.items():
            chosen.setdefault(f"onnxopt {method}", {})[name] = choose(histogram, UINT8)
        how = _how(nodes[0])
        rows = seen.get(name, Rows(how)).rows
        matrices = [how.matrix(_weights(node)) for node in nodes if _how(node) == how]
        _, grid, _ = ranges.best_for_consumers(histogram, UINT8, rows, matrices, extremes)
        chosen.setdefault("onnxopt auto", {})[name] = grid
    return chosen


def _weights(node: ir.Node) -> Array:
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def _numbers(
    seen: Observations, layers: list[ir.Node], grids: Mapping[str, Grid], recover: bool
) -> dict[str, tuple[Array, Array | None]]:
    """What the weights and biases of each layer become, as floats, by the name of its output."""
    made: dict[str, tuple[Array, Array | None]] = {}
    for node in layers:
        weights, name, how = _weights(node), _name(node.inputs[0]), _how(node)
        given = node.inputs[2] if len(node.inputs) > 2 else None
        bias = None
        if given is not None and given.const_value is not None:
            bias = np.asarray(given.const_value.numpy())
        matrix = how.matrix(weights)
        scales = absmax_scales(matrix)
        integers = how.weights(round_to_nearest(matrix, scales), weights.shape)
        gram, grid = seen.get(name, Gram(how)), grids[name]
        if recover:
            flat = scales.reshape(-1)
            integers = recovered_integers(weights, integers, flat, how, gram, grid=grid)
        wide = how.matrix(integers.astype(np.float32)) * scales[:, None]
        quantized = how.weights(wide, weights.shape)
        if recover:
            rows = seen.get(name, Rows(how))
            bias = corrected_bias(bias, weights, quantized, how, gram, rows, grid)
        made[node.outputs[0].name or ""] = quantized, bias
    return made


def _quantized(
    model: ir.Model,
    layers: list[ir.Node],
    grids: Mapping[str, Grid],
    numbers: Mapping[str, tuple[Array, Array | None]],
) -> ir.Model:
    """The model with QDQ pairs before its layers, and weights and biases as they became."""
    proto = to_proto(model)
    nodes: list[onnx.NodeProto] = []
    held: dict[str, Array] = {}
    for name, grid in grids.items():
        held[f"{name}.scale"] = np.array(grid.scale, np.float32)
        held[f"{name}.zero"] = np.array(grid.zero_point, np.uint8)
        parameters = [f"{name}.scale", f"{name}.zero"]
        quantize = onnx.helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}.q"])
        back = onnx.helper.make_node("DequantizeLinear", [f"{name}.q", *parameters], [f"{name}.dq"])
        nodes += [quantize, back]
    for node in proto.graph.node:
        output = node.output[0]
        if output in numbers:
            node.input[0] = f"{node.input[0]}.dq"
            held[f"{output}.w"], bias = numbers[output]
            node.input[1] = f"{output}.w"
            if bias is not None:
                held[f"{output}.b"] = bias
                node.input[2:] = [f"{output}.b"]
        nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(_sorted(nodes, proto))
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        for name, array in held.items()
    )
    return from_proto(proto)


def _sorted(nodes: list[onnx.NodeProto], proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes, each behind what makes its inputs."""
    made = {output: node for node in nodes for output in node.output}
    done: dict[str, onnx.NodeProto] = {}
    for node in nodes:
        pending = [node]
        while pending:
            last = pending[-1]
            missing = [made[x] for x in last.input if x in made and made[x].output[0] not in done]
            if missing:
                pending.extend(missing)
                continue
            done[last.output[0]] = last
            pending.pop()
    return list(done.values())


def _outputs(worker: Worker, model: ir.Model, data: pathlib.Path) -> list[list[Any]]:
    """Outputs on samples that were not calibrated on, without the runtime's own int8 kernels."""
    info = worker.open(bytes(to_proto(model).SerializeToString()), level="disabled")
    outputs = [worker.run(info.session, feed) for feed in feeds(_MODEL, data, _JUDGED)]
    worker.close(info.session)
    return outputs


if __name__ == "__main__":
    main()
