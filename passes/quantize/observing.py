"""What calibration has to look at, and the numbers that come of it."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import onnx_ir as ir

from onnxopt.calibration import Histogram, Observations, Rows, observe
from onnxopt.calibration import Range as Extremes
from onnxopt.calibration.observer import ObserverSpec
from onnxopt.calibration.ranges import best_for_consumers, min_max
from onnxopt.numerics.grids import levels_of
from onnxopt.numerics.layer_inputs import LayerInput, some_outputs
from onnxopt.regions import Product, follower
from onnxopt.runtime.hardware import resolve_target
from onnxopt.workbench import Effort, Workbench

from ..smooth_activations.factors import requests as smoothing_requests
from ..smooth_activations.sites import Site
from .layers import layer_input
from .numbers import Divided, Numbers, Range
from .readings import FEW_ROWS, Reading, reading_of, rows_to_round_by
from .recovery import gram_layers, recovered
from .smoothing import DividedInput

__all__ = [
    "RangeChoice",
    "numbers_for",
    "observations_for",
    "ranges_for",
    "requests_for",
    "sizes_of",
]

#: All that was seen, or what the products that read a tensor are best served with.
RangeChoice = Literal["min-max", "consumers"]
_Requests = dict[str, list[ObserverSpec[Any]]]


def observations_for(
    model: ir.Model, found: Sequence[Product], smoothing: Sequence[Site], bench: Workbench
) -> Observations:
    """One pass over the samples for every tensor that a plan may quantize, or even out."""
    return observe(
        model,
        bench.calibration,
        requests_for(model, found, smoothing, bench.effort),
        worker=bench.worker,
        crew=bench.crew,
        threads=bench.threads,
        on_step=bench.on_step,
    )


def requests_for(
    model: ir.Model, found: Sequence[Product], smoothing: Sequence[Site], effort: Effort
) -> _Requests:
    """What calibration looks at, by the name of the tensor."""
    requests: _Requests = {name: [Extremes(), Histogram()] for name in _tensors(model.graph, found)}
    wanted: _Requests = {product.activation.name or "": [] for product in found}
    for product in gram_layers(found, effort):
        wanted[product.activation.name or ""].append(rows_to_round_by(product))
    for name, (layer, _) in _consumers(found).items():
        wanted[name].append(Rows(layer))
    for name, specs in smoothing_requests(smoothing).items():
        wanted.setdefault(name, []).extend(specs)
    for name, specs in wanted.items():
        if name in requests:
            requests[name].extend(_without_fewer(specs))
    return requests


def _without_fewer(specs: Sequence[ObserverSpec[Any]]) -> list[ObserverSpec[Any]]:
    """What is asked of a tensor, with rows of each layer's input once: the most of them."""
    kept = dict.fromkeys(spec for spec in specs if not isinstance(spec, Rows))
    most: dict[LayerInput, Rows] = {}
    for spec in specs:
        if isinstance(spec, Rows):
            known = most.get(spec.layer, spec)
            most[spec.layer] = max(spec, known, key=lambda each: each.most_bytes)
    return [*kept, *most.values()]


def numbers_for(
    observations: Observations,
    found: Sequence[Product],
    bench: Workbench,
    ranges: Mapping[str, Range],
    effort: Effort,
    divided: Mapping[str, DividedInput] = MappingProxyType({}),
) -> Numbers:
    """Ranges, weights and biases.

    Args:
        observations: What calibration saw.
        found: The products.
        bench: Says for which hardware.
        ranges: What each tensor should cover, by name; see `ranges_for`.
        effort: How much time to take for weights.
        divided: Inputs that may be divided, by key of the product.
    """
    target = resolve_target(bench.target)
    readings: dict[tuple[str, bool], Reading] = {}
    for product in found:
        key = product.key
        readings[key, False] = reading_of(product, observations, ranges)
        if key in divided:
            readings[key, True] = readings[key, False].divided(
                divided[key].factors, divided[key].range
            )
    weights, biases = recovered(readings, target, effort, bench.on_step)
    return Numbers(
        target.signed_activations,
        ranges,
        {key: found for (key, smoothed), found in weights.items() if not smoothed},
        {key: found for (key, smoothed), found in biases.items() if not smoothed},
        {
            key: Divided(each.shaped, each.range, weights[key, True], biases.get((key, True)))
            for key, each in divided.items()
        },
        target.activation_bits,
    )


def ranges_for(
    observations: Observations, found: Sequence[Product], bench: Workbench, choice: RangeChoice
) -> dict[str, Range]:
    """All of what was seen, or for what products read the range that does least harm there.

    A range that suits a tensor by itself may still cost more than it saves where the tensor is
    read, so nothing is cut without knowing the readers.
    """
    target = resolve_target(bench.target)
    levels = levels_of(target.activation_bits, signed=target.signed_activations)
    consumers = _consumers(found)
    ranges: dict[str, Range] = {}
    for number, name in enumerate(observations.observers, start=1):
        bench.on_step(f"choosing ranges, tensor {number} of {len(observations.observers)}")
        histogram = observations.get(name, Histogram())
        if histogram.low > histogram.high:
            continue
        grid = min_max(histogram, levels)
        if choice == "consumers" and name in consumers:
            layer, products = consumers[name]
            seen = observations.rows(name, layer)
            assert seen is not None, "they are asked for wherever a tensor is read"
            rows = seen.some(FEW_ROWS)
            matrices = [some_outputs(layer.matrix(each.weights)) for each in products]
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
        names[product.activation.name or ""] = names[product.output.name or ""] = None
        # What a clamp cuts is never quantized by itself, and to look at it would undo its fusion.
        if product.clamp is not None and not product.clamp.holds_zero:
            names[product.unclamped.name or ""] = None
    for node in graph:
        if follower(node) is not None:
            for each in (*node.inputs, *node.outputs):
                if each is not None and each.dtype == ir.DataType.FLOAT:
                    names[each.name or ""] = None
    inner = {value.name for node in graph for value in node.outputs}
    inner |= {value.name for value in graph.inputs}
    return [name for name in names if name in inner]
