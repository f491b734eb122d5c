"""What it would gain to compute the products of two activations (attention's) in 8 bits.

Usage::

    python -m benchmarks.activation_products DATA [MODEL]

DATA is the folder of the files that `benchmarks.quantization_data` reads, MODEL a model of the zoo,
``minilm`` where none is named. The model is quantized as `onnxopt optimize --data` does it;
then each MatMul of two activations gets QuantizeLinear and DequantizeLinear on both inputs, with
the extremes of the samples as ranges, and is raced against the model without those. "scores" are
the products in front of a Softmax, "values" those behind one. With "8 bits out" the result is
quantized too, so that the runtime has QLinearMatMul; else it has MatMulIntegerToFloat. Results go
to ``benchmarks/results/activation-products.json``.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import onnxopt
from benchmarks import quantization_data
from benchmarks.results import Results
from benchmarks.zoo import model_path
from onnxopt.accuracy import fidelity
from onnxopt.runtime.statistics import ratio
from onnxopt.runtime.trial import race, try_model
from onnxopt.runtime.worker import Worker

__all__ = ["main"]

Feed = dict[str, Any]

_SAMPLES = range(32)
#: Seconds for each race.
_SECONDS = 8.0
_WAYS = {
    "scores": (("scores",), False),
    "scores, 8 bits out": (("scores",), True),
    "values": (("values",), False),
    "both": (("scores", "values"), False),
    "both, 8 bits out": (("scores", "values"), True),
}
#: What lies between a product and a Softmax.
_BETWEEN = ("Add", "Mul", "Div", "Where", "Cast")


def main(arguments: list[str] | None = None) -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("model", nargs="?", default="minilm")
    chosen = parser.parse_args(arguments)
    feeds = list(quantization_data.feeds(chosen.model, chosen.data, _SAMPLES))
    results = Results("activation-products")
    with tempfile.TemporaryDirectory() as folder, Worker() as worker:
        base, samples = pathlib.Path(folder) / "base.onnx", pathlib.Path(folder) / "samples"
        quantization_data.write(chosen.model, chosen.data, _SAMPLES, samples)
        onnxopt.optimize(model_path(chosen.model), base, data=samples)
        model = onnx.load(base)
        found = _products(model)
        ranges = _ranges(model, [name for each in found.values() for name in each], feeds, folder)
        for way, (kinds, narrow) in _WAYS.items():
            nodes = {name for name, values in found.items() if _kind(model, name) in kinds}
            changed = pathlib.Path(folder) / "changed.onnx"
            onnx.save(_quantized(model, nodes, ranges, narrow=narrow), changed)
            row = _compared(worker, base, changed, feeds) | {"products": len(nodes)}
            results[f"{chosen.model}/{way}"] = row
            print(f"{way:20} {len(nodes):3} products  {row['speed']:.3f}x {row['sqnr_db']:.1f} dB")


def _products(model: onnx.ModelProto) -> dict[str, tuple[str, str, str]]:
    """What MatMuls of two activations read and give, by what they give."""
    constant = {tensor.name for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:  # dequantized weights and the like
        if node.op_type in ("Constant", "DequantizeLinear", "Transpose") and all(
            name in constant for name in node.input
        ):
            constant.update(node.output)
    return {
        node.output[0]: (node.input[0], node.input[1], node.output[0])
        for node in makers.values()
        if node.op_type == "MatMul" and not constant & set(node.input)
    }


def _kind(model: onnx.ModelProto, name: str) -> str:
    """Whether a product makes what a Softmax reads or reads what one makes."""
    makers = {output: node for node in model.graph.node for output in node.output}
    if any(makers[each].op_type == "Softmax" for each in makers[name].input if each in makers):
        return "values"
    names = {name}
    for node in model.graph.node:
        if names & set(node.input):
            if node.op_type == "Softmax":
                return "scores"
            if node.op_type in _BETWEEN:
                names.update(node.output)
    return "other"


def _ranges(
    model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed], folder: str
) -> dict[str, tuple[float, float]]:
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {value.name for value in watched.graph.output}
    wanted = sorted(set(names) - known)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    path = pathlib.Path(folder) / "watched.onnx"
    onnx.save(watched, path)
    with Worker() as worker:
        trial = try_model(worker, path, feeds)
    found: dict[str, tuple[float, float]] = {}
    for outputs in trial.outputs:
        for name, array in zip([port.name for port in trial.info.outputs], outputs, strict=True):
            if name in wanted:
                low, high = found.get(name, (0.0, 0.0))
                found[name] = (min(low, float(array.min())), max(high, float(array.max())))
    return found


def _quantized(
    model: onnx.ModelProto,
    products: set[str],
    ranges: dict[str, tuple[float, float]],
    *,
    narrow: bool,
) -> onnx.ModelProto:
    """The model with QuantizeLinear and DequantizeLinear around some products."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    quantized: set[str] = set()

    def pair(name: str, source: str, target: str) -> list[onnx.NodeProto]:
        low, high = ranges[name]
        scale = max(high - low, 1e-6) / 255
        parameters = [f"{name}_pair_scale", f"{name}_pair_zero"]
        arrays = np.array(scale, np.float32), np.array(round(-low / scale), np.uint8)
        result.graph.initializer.extend(
            numpy_helper.from_array(array, each)
            for array, each in zip(arrays, parameters, strict=True)
        )
        return [
            helper.make_node("QuantizeLinear", [source, *parameters], [f"{name}_pair"]),
            helper.make_node("DequantizeLinear", [f"{name}_pair", *parameters], [target]),
        ]

    for node in model.graph.node:
        if node.output[0] not in products:
            result.graph.node.append(node)
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name not in quantized:
                quantized.add(name)
                result.graph.node.extend(pair(name, name, f"{name}_paired"))
            copy.input[index] = f"{name}_paired"
        result.graph.node.append(copy)
        if narrow:
            name = node.output[0]
            copy = result.graph.node[-1]
            copy.output[0] = f"{name}_wide"
            result.graph.node.extend(pair(name, f"{name}_wide", name))
    return result


def _compared(
    worker: Worker, base: pathlib.Path, changed: pathlib.Path, feeds: Sequence[Feed]
) -> dict[str, Any]:
    before, after = (try_model(worker, path, feeds) for path in (base, changed))
    found = fidelity(before.outputs, after.outputs, [port.name for port in before.info.outputs])
    kernels = {kernel.op_type for kernel in after.kernels}
    longest = max(feeds, key=lambda feed: sum(array.size for array in feed.values()))
    speed = ratio(*race(worker, [base, changed], longest, seconds=_SECONDS))
    return {
        "speed": speed.median,
        "low": speed.low,
        "high": speed.high,
        "sqnr_db": found.sqnr_db,
        "kernels": sorted(each for each in kernels if "MatMul" in each),
    }


if __name__ == "__main__":
    main()
