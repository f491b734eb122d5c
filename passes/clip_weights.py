"""Cap the outliers among weights, output by output.

A few large weights stretch the range of their row, and a grid of few levels over that range has
coarse steps for all the others. The bound of each row (a row makes one output; see
`passes.sparsify.layers`) is

- ``percentile``: that percentile of the absolute weights, linearly interpolated; or
- ``mse``: the one of 64 fractions of the largest absolute weight with which rounding the row to a
  symmetric grid of so many bits has the least squared error, clipping included. (Sung et al.,
  Resiliency of Deep Neural Networks under Quantization, 2015, arXiv 1511.06488, search likewise.)

Lossy; for its own sake it only loses accuracy, so it belongs before something that rounds. Left
alone: quantized weights, whose grid is fixed already, biases and normalizations, and everything
that `sparsify` leaves alone because of how it is read.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.pass_contract import Kind, Outcome, Pass, Refusal

from .sparsify.layers import OPERATORS, find_layers

__all__ = ["ClipWeights", "mse_bounds", "percentile_bounds"]

Array = np.ndarray[Any, Any]

_RULE = "weight"
#: Bounds that are tried, as parts of the largest weight.
_FRACTIONS = np.linspace(1.0, 0.2, 64)


@dataclasses.dataclass(frozen=True)
class _Options:
    """Options of `ClipWeights`.

    Attributes:
        method: How bounds are found.
        percentile: Of the absolute weights of a row, from 0 to 100.
        bits: Of the grid that ``mse`` rounds to.
        min_elements: Smaller weights are left alone.
    """

    method: Literal["mse", "percentile"] = "mse"
    percentile: float = 99.9
    bits: int = 8
    min_elements: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 100:
            raise ValueError("percentile is above 0 and up to 100")
        if not 2 <= self.bits <= 16:
            raise ValueError("bits are from 2 to 16")
        if self.min_elements < 0:
            raise ValueError("min-elements must not be negative")


class ClipWeights(Pass):
    """Cap the outliers among weights, output by output.

    Lossy. The bound of each row of weights is a percentile of their absolute values, or the one
    with which rounding to so many bits has the least squared error. Quantized weights are left
    alone, as are biases, normalizations, and weights that are read in different ways.
    """

    name = "clip-weights"
    kind = Kind.LOSSY
    Options: ClassVar[type] = _Options

    def run(self, model: ir.Model) -> Outcome:
        """Clip in the main graph and in the bodies in it."""
        outcome = Outcome(model, False)
        wanted = [each for each in OPERATORS if each != "Gather"]
        layers, refused = find_layers(model, wanted, self.options.min_elements)
        outcome.matched[_RULE] += len(layers) + len(refused)
        outcome.refusals.extend(Refusal(_RULE, why, value.name or "") for value, why in refused)
        for layer in layers:
            if self.max_rewrites is not None and outcome.rewritten.total() >= self.max_rewrites:
                break
            before = layer.matrix()
            reason = ""
            if layer.grid is not None:
                reason = "it is quantized already"
            elif not np.isfinite(before).all():
                reason = "it has numbers that are not finite"
            else:
                bounds = self._bounds(before)
                after = np.clip(before, -bounds, bounds)
                tensor = layer.tensor(after)
                if np.array_equal(before, after):
                    reason = "it has no outliers"
            if reason:
                outcome.refusals.append(Refusal(_RULE, reason, layer.name))
                continue
            layer.value.const_value = tensor
            outcome.rewritten[_RULE] += 1
        outcome.modified = bool(outcome.rewritten)
        return outcome

    def _bounds(self, weight: Array) -> Array:
        if self.options.method == "percentile":
            return percentile_bounds(weight, self.options.percentile)
        return mse_bounds(weight, self.options.bits)


def percentile_bounds(weight: Array, percentile: float) -> Array:
    """A percentile of the absolute weights of each row, [groups, rows, 1]."""
    return np.asarray(np.percentile(np.abs(weight), percentile, axis=-1, keepdims=True))


def mse_bounds(weight: Array, bits: int) -> Array:
    """The bound of each row with which rounding has the least squared error, [groups, rows, 1]."""
    largest = np.abs(weight).max(axis=-1, keepdims=True)
    levels = 2 ** (bits - 1) - 1
    best, least = largest, np.full(largest.shape, np.inf)
    for fraction in _FRACTIONS.tolist():
        bound = fraction * largest
        step = np.where(bound > 0, bound / levels, 1.0)
        rounded = np.clip(np.rint(weight / step), -levels, levels) * step
        error = np.square(rounded - weight).sum(axis=-1, keepdims=True)
        better = error < least
        best, least = np.where(better, bound, best), np.where(better, error, least)
    bounds: Array = best
    return bounds
