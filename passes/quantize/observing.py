"""What calibration has to look at, and the numbers that come of it."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute, ints_attribute, string_attribute
from onnxopt.calibration import Histogram, Observations, Rows, observe
from onnxopt.calibration import Range as Extremes
from onnxopt.calibration.observer import ObserverSpec
from onnxopt.calibration.ranges import best_for_consumers, min_max
from onnxopt.numerics.grids import INT8, UINT8
from onnxopt.numerics.layer_inputs import ConvolutionInput, LayerInput, ProductInput
from onnxopt.regions import Product, follower
from onnxopt.runtime.hardware import Target
from onnxopt.workbench import Workbench

from .numbers import Numbers, Range
from .parameters import for_range
from .weights import Weights, least_scales, quantize_weights

__all__ = ["layer_input", "numbers_for", "observations_for", "sizes_of"]

_Requests = dict[str, list[ObserverSpec[Any]]]


def layer_input(product: Product) -> LayerInput:
    """How the input of a product becomes rows of a matrix product."""
    node = product.node
    if node.op_type != "Conv":
        return ProductInput()
    axes = product.weights.ndim - 2
    ones = (1,) * axes
    return ConvolutionInput(
        kernel=product.weights.shape[2:],
        strides=ints_attribute(node, "strides") or ones,
        dilations=ints_attribute(node, "dilations") or ones,
        pads=ints_attribute(node, "pads") or (0,) * (2 * axes),
        auto_pad=string_attribute(node, "auto_pad", "NOTSET"),
        groups=int_attribute(node, "group", 1),
    )


def observations_for(model: ir.Model, found: Sequence[Product], bench: Workbench) -> Observations:
    """One pass over the samples for every tensor that a plan may quantize."""
    requests: _Requests = {name: [Extremes(), Histogram()] for name in _tensors(model.graph, found)}
    for name, (layer, _) in _consumers(found).items():
        requests[name].append(Rows(layer))
    return observe(
        model,
        bench.calibration,
        requests,
        worker=bench.worker,
        threads=bench.threads,
        on_step=bench.on_step,
    )


def numbers_for(observations: Observations, found: Sequence[Product], target: Target) -> Numbers:
    """Ranges and weights."""
    weights: dict[str, Weights] = {}

    ranges = _ranges(observations, found, target)

    def make(product: Product) -> Weights:
        if product.key not in weights:
            least = None
            if product.bias is not None and product.activation.name in ranges:
                scale = for_range(*ranges[product.activation.name]).scale
                least = least_scales(product.bias, scale)
            weights[product.key] = quantize_weights(
                product.weights, product.channel_axis, target.pair_limit, least=least
            )
        return weights[product.key]

    return Numbers(target.signed_activations, ranges, make)


def _ranges(
    observations: Observations, found: Sequence[Product], target: Target
) -> dict[str, Range]:
    """For what products read, the range that does least harm to them; for the rest, all of it.

    A range that suits a tensor by itself may still cost more than it saves where the tensor is
    read, so nothing is cut without knowing the readers.
    """
    levels = INT8 if target.signed_activations else UINT8
    consumers = _consumers(found)
    ranges: dict[str, Range] = {}
    for name in observations.observers:
        histogram = observations.get(name, Histogram())
        if histogram.low > histogram.high:
            continue
        grid = min_max(histogram, levels)
        if name in consumers:
            layer, products = consumers[name]
            rows = observations.get(name, Rows(layer)).rows
            matrices = [layer.matrix(each.weights) for each in products]
            extremes = observations.get(name, Extremes())
            _, grid, _ = best_for_consumers(histogram, levels, rows, matrices, extremes)
        ranges[name] = (grid.least, grid.greatest)
    return ranges


def _consumers(found: Iterable[Product]) -> Mapping[str, tuple[LayerInput, list[Product]]]:
    """The products that read a tensor, as far as they see the same rows in it."""
    consumers: dict[str, tuple[LayerInput, list[Product]]] = {}
    by_layer: dict[tuple[str, LayerInput], list[Product]] = collections.defaultdict(list)
    for product in found:
        name, layer = product.activation.name or "", layer_input(product)
        by_layer[name, layer].append(product)
        consumers.setdefault(name, (layer, by_layer[name, layer]))
    return consumers


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
