"""Carry out a plan on a model and run it, at any of the runtime's levels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxopt.passes.infer_shapes import InferShapes
from onnxopt.passes.quantize.lowering import lower
from onnxopt.passes.quantize.numbers import Numbers
from onnxopt.passes.quantize.plan import Mode, Plan
from onnxopt.passes.quantize.weights import quantize_weights

from onnxopt.model import from_proto, to_proto
from onnxopt.regions import Product, products

Array = np.ndarray[Any, Any]


def ranges_of(model: onnx.ModelProto, *feeds: Mapping[str, Array]) -> dict[str, Any]:
    """Extremes of every float tensor of the main graph."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {value.name for value in watched.graph.output}
    names = [name for node in watched.graph.node for name in node.output if name not in known]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(watched.SerializeToString(), options)
    seen: dict[str, list[Array]] = {}
    for feed in feeds:
        outputs = zip(session.get_outputs(), session.run(None, dict(feed)), strict=True)
        for name, array in (*((port.name, value) for port, value in outputs), *feed.items()):
            if array.dtype == np.float32:
                seen.setdefault(name, []).append(array)
    return {
        name: (min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays))
        for name, arrays in seen.items()
    }


def lowered(
    model: onnx.ModelProto,
    mode: Mode | Mapping[str, Mode],
    *feeds: Mapping[str, Array],
    signed: bool = False,
    pair_limit: int | None = None,
    biases: Mapping[str, Array] | None = None,
) -> tuple[onnx.ModelProto, Counter[str]]:
    """The model with its products in a mode, with min-max ranges; and what was done."""
    converted = from_proto(model)
    InferShapes()(converted)
    found = [each for each in products(converted.graph) if isinstance(each, Product)]
    modes = {each.key: mode for each in found} if isinstance(mode, Mode) else dict(mode)
    weights = {
        each.key: quantize_weights(each.weights, each.channel_axis, pair_limit, groups=each.groups)
        for each in found
    }
    numbers = Numbers(signed, ranges_of(model, *feeds), weights, biases or {})
    done = lower(converted, Plan(modes), numbers)
    result = to_proto(converted)
    onnx.checker.check_model(result, full_check=True)
    return result, done


def run_at(model: onnx.ModelProto, feed: Mapping[str, Array], level: str = "all") -> list[Any]:
    """Run a model at a level of the runtime's optimizations."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = {
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }[level]
    session = ort.InferenceSession(model.SerializeToString(), options)
    outputs: list[Any] = session.run(None, dict(feed))
    return outputs


def kernels(model: onnx.ModelProto, tmp_path: Any) -> Counter[str]:
    """Operators of the graph that the runtime makes of a model."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options)
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def decibels(expected: Array, actual: Array) -> float:
    """Signal-to-noise ratio."""
    noise = float(np.square(expected.astype(np.float64) - actual).sum())
    signal = float(np.square(expected.astype(np.float64)).sum())
    return 10 * math.log10(signal / max(noise, 1e-300))
