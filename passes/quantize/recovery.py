"""Weights that lose little: rounding that makes up for itself, and biases that are set right.

Rounding to the nearest number is not the best rounding: errors of weights whose inputs go together
add up, or cancel. With the Gram matrix of a layer's input, its weights are rounded so that the
output changes least (`onnxopt.numerics.rounding`). What is left of the change has a mean, which the
bias takes back (Nagel et al., "Data-free quantization through weight equalization and bias
correction", 2019).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxopt.calibration import Gram, GramObserver, Observations, Rows
from onnxopt.numerics.gram import relative_output_error
from onnxopt.numerics.rounding import PairLimit, bias_shift, round_with_compensation
from onnxopt.regions import Product
from onnxopt.runtime.hardware import Target
from onnxopt.workbench import Effort

from .layers import layer_input
from .numbers import Range
from .parameters import for_range
from .weights import Weights, least_scales, pair_orders, quantize_weights

__all__ = ["GRAM_ROWS", "gram_layers", "recovered"]

Array = np.ndarray[Any, Any]

#: Rows of each sample that go into a Gram matrix.
GRAM_ROWS = 128
#: Gram matrices may take so much memory together.
_GRAM_BYTES = 512 << 20
#: Seconds for rounding, and rounds of it for each layer.
_PATIENCE: Mapping[Effort, float] = {"low": 0.0, "medium": 30.0, "high": 300.0}
_SWEEPS: Mapping[Effort, int] = {"low": 0, "medium": 1, "high": 4}


def gram_layers(found: Sequence[Product], effort: Effort) -> list[Product]:
    """The products whose inputs get Gram matrices: the narrowest ones, as far as memory goes."""
    if not _PATIENCE[effort]:
        return []
    chosen, left = [], _GRAM_BYTES
    for product in sorted(found, key=_gram_bytes):
        left -= _gram_bytes(product)
        if left < 0:
            break
        chosen.append(product)
    return chosen


def recovered(
    found: Sequence[Product],
    observations: Observations,
    ranges: Mapping[str, Range],
    target: Target,
    effort: Effort,
    on_step: Callable[[str], None],
) -> tuple[dict[str, Weights], dict[str, Array]]:
    """Weights and corrected biases by key.

    Layers whose outputs suffer most are rounded with care first, until patience is at its end.

    Args:
        found: The products.
        observations: Rows of their inputs, and Gram matrices.
        ranges: Of their inputs, by name.
        target: Says which weights must not be large together.
        effort: How much time to take.
        on_step: Told how far it is.
    """
    weights = {product.key: _plain(product, ranges, target) for product in found}
    errors: dict[str, float] = {}
    for product in found:
        gram = _gram(product, observations)
        if gram is not None:
            layer = layer_input(product)
            change = _change(product, weights[product.key])
            matrix = layer.matrix(product.weights)
            errors[product.key] = relative_output_error(_mean(gram), matrix, change)
    worst_first = sorted(
        (product for product in found if product.key in errors),
        key=lambda product: -errors[product.key],
    )
    end = time.perf_counter() + _PATIENCE[effort]
    for number, product in enumerate(worst_first, start=1):
        if time.perf_counter() > end:
            break
        on_step(f"rounding weights, layer {number} of {len(worst_first)}")
        gram = _gram(product, observations)
        assert gram is not None
        weights[product.key] = _compensated(
            product, weights[product.key], _mean(gram), target, _SWEEPS[effort]
        )
    biases = {
        product.key: bias
        for product in found
        if (bias := _corrected(product, weights[product.key], observations)) is not None
    }
    return weights, biases


def _plain(product: Product, ranges: Mapping[str, Range], target: Target) -> Weights:
    least = None
    name = product.activation.name or ""
    if product.bias is not None and name in ranges:
        least = least_scales(product.bias, for_range(*ranges[name]).scale)
    return quantize_weights(product.weights, product.channel_axis, target.pair_limit, least=least)


def _compensated(
    product: Product, plain: Weights, gram: Array, target: Target, sweeps: int
) -> Weights:
    layer = layer_input(product)
    matrix = layer.matrix(product.weights)
    pairs = None
    if target.pair_limit is not None:
        orders = pair_orders(product.weights, product.channel_axis)
        pairs = PairLimit.along(orders, target.pair_limit) if orders else None
    numbers = round_with_compensation(
        matrix,
        plain.scales.reshape(matrix.shape[0], matrix.shape[2]),
        gram,
        start=layer.matrix(plain.numbers).astype(np.int16),
        pairs=pairs,
        sweeps=sweeps,
    )
    narrow = layer.weights(numbers, product.weights.shape).astype(np.int8)
    return Weights(np.ascontiguousarray(narrow), plain.scales, plain.axis)


def _corrected(product: Product, weights: Weights, observations: Observations) -> Array | None:
    """The bias that keeps the means of the outputs; None where there is nothing to correct."""
    mean = _mean_row(product, observations)
    if mean is None:
        return None
    shift = bias_shift(_change(product, weights), mean).reshape(-1)
    bias = np.zeros(len(shift)) if product.bias is None else product.bias.astype(np.float64)
    return (bias + shift).astype(np.float32)


def _change(product: Product, weights: Weights) -> Array:
    layer = layer_input(product)
    change = weights.dequantized().astype(np.float64) - product.weights
    return layer.matrix(change)


def _mean_row(product: Product, observations: Observations) -> Array | None:
    """Mean of the rows of a product's input, float64 [groups, K]."""
    gram = _gram(product, observations)
    if gram is not None:
        return gram.mean
    name, spec = product.activation.name or "", Rows(layer_input(product))
    if spec not in observations.observers.get(name, {}):
        return None
    rows = observations.get(name, spec).rows
    return rows.mean(axis=0, dtype=np.float64) if len(rows) else None


def _gram(product: Product, observations: Observations) -> GramObserver | None:
    name, spec = product.activation.name or "", Gram(layer_input(product), GRAM_ROWS)
    if spec not in observations.observers.get(name, {}):
        return None
    found = observations.get(name, spec)
    return None if found.gram is None else found


def _mean(observer: GramObserver) -> Array:
    assert observer.gram is not None
    return observer.gram / max(1, observer.count)


def _gram_bytes(product: Product) -> int:
    columns = product.weights.size // product.weights.shape[product.channel_axis]
    return int(8 * product.groups * columns**2)
