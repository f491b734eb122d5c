"""Weights that lose little: rounding that makes up for itself, and biases that are set right.

Rounding to the nearest number is not the best rounding: errors of weights whose inputs go together
add up, or cancel. With the Gram matrix of a layer's input, its weights are rounded so that the
output changes least (`onnxopt.numerics.rounding`). What is left of the change has a mean, which the
bias takes back (Nagel et al., "Data-free quantization through weight equalization and bias
correction", 2019).

Products that have the same weights are rounded alike, for all of their inputs together: a file
holds what they share once, and would hold it once for each of them otherwise.
"""

from __future__ import annotations

import collections
import hashlib
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from onnxopt.numerics.rounding import PairLimit, bias_shift, round_with_compensation
from onnxopt.regions import Product
from onnxopt.runtime.hardware import Target
from onnxopt.workbench import Effort

from .layers import layer_input
from .parameters import for_range
from .readings import Reading, rows_to_round_by
from .weights import Weights, least_scales, pair_order, quantize_weights

__all__ = ["gram_layers", "recovered"]

Array = np.ndarray[Any, Any]
Key = TypeVar("Key", bound=Hashable)

#: Rows to round by may take so much memory together, and so may a single Gram matrix.
_ROW_BYTES = _GRAM_BYTES = 512 << 20
#: Seconds for rounding, and rounds of it for each layer.
_PATIENCE: Mapping[Effort, float] = {"low": 0.0, "medium": 30.0, "high": 300.0}
_SWEEPS: Mapping[Effort, int] = {"low": 0, "medium": 1, "high": 4}


def gram_layers(found: Sequence[Product], effort: Effort) -> list[Product]:
    """The products whose weights are rounded with care: the narrowest, as far as memory goes.

    There may be a Gram matrix of each of these, and so many rows that it says something.
    """
    if not _PATIENCE[effort]:
        return []
    chosen, left = [], _ROW_BYTES
    for product in sorted(found, key=_gram_bytes):
        columns = _columns(product)
        left -= rows_to_round_by(product).bytes_of(product.groups * columns, columns)
        if left < 0 or _gram_bytes(product) > _GRAM_BYTES:
            break
        chosen.append(product)
    return chosen


def recovered(
    readings: Mapping[Key, Reading],
    target: Target,
    effort: Effort,
    on_step: Callable[[str], None],
) -> tuple[dict[Key, Weights], dict[Key, Array]]:
    """Weights and corrected biases, by the keys of the readings.

    Layers whose outputs suffer most are rounded with care first, until patience is at its end.

    Args:
        readings: The products, and what is known of their inputs.
        target: Says which weights must not be large together.
        effort: How much time to take.
        on_step: Told how far it is.
    """
    groups = _of_same_weights(readings)
    rounded = [_plain(group, target) for group in groups.values()]
    errors: dict[int, float] = {}
    if _PATIENCE[effort]:
        for at, (group, plain) in enumerate(zip(groups.values(), rounded, strict=True)):
            on_step(f"comparing rounded weights, layer {at + 1} of {len(groups)}")
            error = _relative_error(group, plain)
            if error is not None:
                errors[at] = error
    worst_first = sorted(errors, key=lambda at: -errors[at])
    end = time.perf_counter() + _PATIENCE[effort]
    for number, at in enumerate(worst_first, start=1):
        if time.perf_counter() > end:
            break
        on_step(f"rounding weights, layer {number} of {len(worst_first)}")
        group = list(groups.values())[at]
        rounded[at] = _compensated(group, rounded[at], target, _SWEEPS[effort])
    weights = {key: found for keys, found in zip(groups, rounded, strict=True) for key in keys}
    biases = {
        key: bias
        for key, reading in readings.items()
        if (bias := _corrected(reading, weights[key])) is not None
    }
    return weights, biases


def _of_same_weights(readings: Mapping[Key, Reading]) -> dict[tuple[Key, ...], list[Reading]]:
    """The readings, those together whose products have the same weights, by their keys."""
    alike: dict[Hashable, list[Key]] = collections.defaultdict(list)
    for key, reading in readings.items():
        product, weights = reading.product, np.ascontiguousarray(reading.product.weights)
        digest = hashlib.blake2b(weights.data.cast("B")).digest()
        alike[product.channel_axis, product.groups, weights.shape, digest].append(key)
    return {tuple(keys): [readings[key] for key in keys] for keys in alike.values()}


def _plain(group: Sequence[Reading], target: Target) -> Weights:
    product, least = group[0].product, None
    for reading in group:
        bias = reading.product.bias
        if bias is not None and reading.range is not None:
            step = for_range(*reading.range, bits=target.activation_bits).scale
            wanted = least_scales(bias, step)
            least = wanted if least is None else np.maximum(least, wanted)
    axis, limit, groups = product.channel_axis, target.pair_limit, product.groups
    return quantize_weights(product.weights, axis, limit, least=least, groups=groups)


def _relative_error(group: Sequence[Reading], plain: Weights) -> float | None:
    """Power of what rounding does to the outputs, relative to theirs; None where nothing is known.

    Products of the same weights count together.
    """
    if not any(reading.seen is not None and reading.seen.seen for reading in group):
        return None
    product = group[0].product
    matrix, change = layer_input(product).matrix(product.weights), _change(product, plain)
    power = sum(reading.power(matrix) for reading in group)
    return sum(reading.power(change) for reading in group) / power if power > 0 else 0.0


def _common_gram(group: Sequence[Reading]) -> Array | None:
    """The sum of the Gram matrices that are known."""
    found = [gram for reading in group if (gram := reading.gram()) is not None]
    return sum(found[1:], start=found[0]) if found else None


def _compensated(group: Sequence[Reading], plain: Weights, target: Target, sweeps: int) -> Weights:
    product, gram = group[0].product, _common_gram(group)
    assert gram is not None
    layer = layer_input(product)
    matrix = layer.matrix(product.weights)
    pairs = None
    if target.pair_limit is not None:
        order = pair_order(product.weights, product.channel_axis, product.groups)
        pairs = None if order is None else PairLimit.along([order], target.pair_limit)
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


def _corrected(reading: Reading, weights: Weights) -> Array | None:
    """The bias that keeps the means of the outputs; None where there is nothing to correct."""
    if reading.mean is None:
        return None
    product = reading.product
    shift = bias_shift(_change(product, weights), reading.mean).reshape(-1)
    bias = np.zeros(len(shift)) if product.bias is None else product.bias.astype(np.float64)
    return (bias + shift).astype(np.float32)


def _change(product: Product, weights: Weights) -> Array:
    layer = layer_input(product)
    change = weights.dequantized().astype(np.float64) - product.weights
    return layer.matrix(change)


def _gram_bytes(product: Product) -> int:
    return 8 * product.groups * _columns(product) ** 2


def _columns(product: Product) -> int:
    """Inputs of each output."""
    return int(product.weights.size // product.weights.shape[product.channel_axis])
