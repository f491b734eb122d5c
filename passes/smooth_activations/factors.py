"""By how much to divide the channels of an activation."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxopt.calibration import Channels, Observations, ObserverSpec, Rows
from onnxopt.numerics.grids import UINT8
from onnxopt.numerics.layer_inputs import LayerInput, some_outputs
from onnxopt.numerics.smoothing import STRENGTHS, by_column, quantized_error, smoothing_factors
from onnxopt.rewriting import Refuse

from ..shared.affine import Array
from .sites import Site

__all__ = ["best_factors", "requests"]

#: Rows to choose factors by take so many bytes for each layer.
_ROW_BYTES = 1 << 20

#: Layers are tried on rows that take so many bytes, at most, however many there are.
_ROW_BYTES = 1 << 20


def requests(found: Sequence[Site]) -> Mapping[str, list[ObserverSpec[Any]]]:
    """What calibration has to look at, by tensor."""
    requests: dict[str, list[ObserverSpec[Any]]] = {}
    for site in found:
        specs: list[ObserverSpec[Any]] = [Channels(site.axis)]
        specs.extend(Rows(how) for how in dict.fromkeys(layer.input for layer in site.layers))
        requests[site.value.name or ""] = specs
    return requests


def best_factors(site: Site, observations: Observations, wanted: float) -> Array:
    """Factors by channel with which the layers come out best in 8 bits.

    Args:
        site: The activation.
        observations: What calibration saw of it; see `requests`.
        wanted: Least gain at the outputs of the layers, in decibels.

    Raises:
        Refuse: When no factors gain enough.
    """
    name = site.value.name or ""
    if name not in observations:
        raise Refuse(f"it {observations.left_alone.get(name, 'was not observed')}")
    channels = observations.get(name, Channels(site.axis))
    if not channels.elements:
        raise Refuse("it was empty in all samples")
    if len(channels.low) != site.channels:
        raise Refuse("it has another number of channels than the layers")
    weights = np.max([_magnitudes(site, layer.matrix) for layer in site.layers], axis=0)
    best, judged = np.ones(site.channels), _Judged.of(site, observations)
    before = least = judged.error(best)
    for strength in STRENGTHS:
        factors = smoothing_factors(channels.absmax, weights, strength)
        error = judged.error(factors)
        if error < least:
            best, least = factors, error
    gain = 10 * math.log10(before / least) if least > 0 else 0.0
    if least >= before or gain < wanted:
        raise Refuse("smoothing gains too little")
    return best


def _magnitudes(site: Site, matrix: Array) -> Array:
    """Greatest magnitude of the weights that read each channel."""
    return np.asarray(np.abs(matrix).max(axis=2).reshape(site.channels, -1).max(axis=1))


@dataclasses.dataclass(frozen=True)
class _Judged:
    """What factors are judged by: rows of the activation and what layers make of them.

    Attributes:
        low: Least number of each channel.
        high: Greatest number of each channel.
        readers: For layers that see the same rows: these, [groups, R, K], some columns of the
            weights of each, and its outputs.
    """

    low: Array
    high: Array
    readers: tuple[tuple[Array, list[Array], list[Array]], ...]

    @classmethod
    def of(cls, site: Site, observations: Observations) -> _Judged:
        """What calibration saw of an activation."""
        name = site.value.name or ""
        channels = observations.get(name, Channels(site.axis))
        alike: dict[LayerInput, list[Array]] = collections.defaultdict(list)
        for layer in site.layers:
            alike[layer.input].append(some_outputs(layer.matrix))
        readers = []
        for how, matrices in alike.items():
            seen = observations.rows(name, how)
            assert seen is not None, "they are asked for wherever a site is"
            rows = seen.some(_ROW_BYTES).transpose(1, 0, 2)
            readers.append((rows, matrices, [rows @ matrix for matrix in matrices]))
        return cls(channels.low, channels.high, tuple(readers))

    def error(self, factors: Array) -> float:
        """Error of the layers in integers, relative to their outputs, with factors by channel."""
        ends = float((self.low / factors).min()), float((self.high / factors).max())
        total = 0.0
        for rows, matrices, expected in self.readers:
            columns = by_column(factors, len(rows), rows.shape[2])
            total += quantized_error(rows, matrices, expected, columns, ends, UINT8)
        return total / len(self.readers)
