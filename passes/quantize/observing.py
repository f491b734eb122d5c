"""What calibration has to look at, and the numbers that come of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from onnxopt.calibration import Histogram, Observations, observe
from onnxopt.calibration import Range as Extremes
from onnxopt.regions import Product, follower
from onnxopt.runtime.hardware import Target
from onnxopt.workbench import Workbench

from .numbers import Numbers, Range
from .weights import Weights, quantize_weights

__all__ = ["numbers_for", "observations_for", "sizes_of"]


def observations_for(model: ir.Model, found: Sequence[Product], bench: Workbench) -> Observations:
    """One pass over the samples for every tensor that a plan may quantize."""
    return observe(
        model,
        bench.calibration,
        {name: [Extremes(), Histogram()] for name in _tensors(model.graph, found)},
        worker=bench.worker,
        threads=bench.threads,
        on_step=bench.on_step,
    )


def numbers_for(observations: Observations, found: Sequence[Product], target: Target) -> Numbers:
    """Ranges and weights."""
    ranges: dict[str, Range] = {}
    for name in observations.observers:
        seen = observations.get(name, Histogram())
        if seen.low <= seen.high:
            ranges[name] = (seen.low, seen.high)
    weights: dict[str, Weights] = {}

    def make(product: Product) -> Weights:
        if product.key not in weights:
            weights[product.key] = quantize_weights(
                product.weights, product.channel_axis, target.pair_limit
            )
        return weights[product.key]

    return Numbers(target.signed_activations, ranges, make)


def sizes_of(observations: Observations) -> dict[str, int]:
    """Numbers in each tensor, in the mean over the samples."""
    sizes = {}
    for name in observations.observers:
        seen = observations.get(name, Extremes())
        sizes[name] = seen.elements // max(1, seen.samples)
    return sizes


def _tensors(graph: ir.Graph, found: Iterable[Product]) -> list[str]:
    names: dict[str, None] = {}
    for product in found:
        for value in (product.activation, product.unclamped, product.output):
            names[value.name or ""] = None
    for node in graph:
        if follower(node) is not None:
            for each in (*node.inputs, *node.outputs):
                if each is not None and each.dtype == ir.DataType.FLOAT:
                    names[each.name or ""] = None
    inner = {value.name for node in graph for value in node.outputs}
    inner |= {value.name for value in graph.inputs}
    return [name for name in names if name in inner]
