"""Whether two models' outputs are the same, and by how much they differ.

Two programs that add the same numbers in another order differ by rounding; a wrong rewrite differs
by far more. The tolerance lies between: each element may be off by ``rtol`` of itself, or by
``atol`` of the largest magnitude in the output. Anything that is not floating point must be equal.
Masks hold numbers such as -1e9 where there is nothing: those do not count as the largest magnitude.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxopt.numerics.fillers import are_fillers

__all__ = ["Difference", "Tolerance", "compare", "worst"]


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far outputs may be apart.

    Attributes:
        rtol: Relative to each element.
        atol: Relative to the largest finite magnitude of the reference output.
    """

    rtol: float = 1e-3
    atol: float = 2e-5

    def scaled(self, factor: float) -> Tolerance:
        """The tolerance times a factor."""
        return Tolerance(self.rtol * factor, self.atol * factor)

    def of(self, dtype: np.dtype[Any]) -> Tolerance:
        """For a dtype with fewer mantissa bits than float32, as much more as its steps are.

        An element may not be off by more of itself than a few steps, or zeros would pass for
        anything.
        """
        bits = _MANTISSA_BITS.get(dtype.name, 23)
        if bits >= 23:
            return self
        wider = self.scaled(2.0 ** (23 - bits) / 64)
        most = min(_MOST_STEPS * 2.0**-bits, _MOST_RELATIVE)
        return Tolerance(
            max(self.rtol, min(wider.rtol, most)), max(self.atol, min(wider.atol, _MOST_RELATIVE))
        )


#: Elements of narrow types may be so many of their steps off, and no more of themselves than this.
_MOST_STEPS, _MOST_RELATIVE = 16, 0.25
#: Explicit mantissa bits; float32 has 23.
_MANTISSA_BITS = {
    "float16": 10,
    "bfloat16": 7,
    "float8_e4m3fn": 3,
    "float8_e4m3fnuz": 3,
    "float8_e5m2": 2,
    "float8_e5m2fnuz": 2,
}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How one output of one run differs from the reference.

    Attributes:
        output: Its name.
        agrees: Whether it is within tolerance.
        reason: What is wrong when it does not agree, else empty.
        own_noise: Whether it only agrees because the reference is as far from itself when the
            runtime does not optimize it.
        max_abs: Largest absolute difference (of finite elements).
        max_scaled: The same, divided by the largest magnitude of the reference, masks aside.
        snr_db: Signal to noise ratio in decibels, 10 log10(sum ref^2 / sum diff^2); infinite when
            equal.
        cosine: Cosine of the angle between the two as vectors; 1 when equal.
    """

    output: str
    agrees: bool
    reason: str = ""
    own_noise: bool = False
    max_abs: float = 0.0
    max_scaled: float = 0.0
    snr_db: float = math.inf
    cosine: float = 1.0


def compare(
    expected: Sequence[Any],
    actual: Sequence[Any],
    names: Sequence[str],
    tolerance: Tolerance | None = None,
) -> list[Difference]:
    """Compare the outputs of two runs, one by one.

    Sequences, maps and optionals are compared element by element; an element's name is the
    output's with its position.
    """
    tolerance = tolerance or Tolerance()
    if len(expected) != len(actual):
        return [_wrong("", f"{len(expected)} outputs became {len(actual)}")]
    differences: list[Difference] = []
    for name, one, other in zip(names, expected, actual, strict=True):
        differences.extend(_compare_any(name, one, other, tolerance))
    return differences


def worst(differences: Sequence[Difference]) -> Difference | None:
    """The difference that matters most: one that does not agree, else the lowest SNR.

    Outputs whose own noise is as large come last, whatever their SNR.
    """
    return min(
        differences, key=lambda each: (each.agrees, each.own_noise, each.snr_db), default=None
    )


def _compare_any(name: str, one: Any, other: Any, tolerance: Tolerance) -> Iterator[Difference]:
    if one is None or other is None:
        if one is not None or other is not None:
            yield _wrong(name, "an optional value is there in one and not in the other")
    elif isinstance(one, list) or isinstance(other, list):
        if not (isinstance(one, list) and isinstance(other, list)) or len(one) != len(other):
            yield _wrong(name, "the sequences have different lengths")
            return
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _compare_any(f"{name}[{index}]", left, right, tolerance)
    elif isinstance(one, Mapping):
        if not isinstance(other, Mapping) or one.keys() != other.keys():
            yield _wrong(name, "the maps have different keys")
            return
        for key in one:
            yield from _compare_any(f"{name}[{key}]", one[key], other[key], tolerance)
    else:
        yield _compare_arrays(name, np.asarray(one), np.asarray(other), tolerance)


def _compare_arrays(
    name: str, one: np.ndarray[Any, Any], other: np.ndarray[Any, Any], tolerance: Tolerance
) -> Difference:
    if one.dtype != other.dtype:
        return _wrong(name, f"type {one.dtype} became {other.dtype}")
    if one.shape != other.shape:
        return _wrong(name, f"shape {list(one.shape)} became {list(other.shape)}")
    if not _is_floating(one.dtype):
        unequal = int(np.count_nonzero(one != other))
        if unequal:
            return _wrong(name, f"{unequal} of {one.size} elements differ")
        return Difference(name, True)
    tolerance = tolerance.of(one.dtype)
    left, right = _as_float64(one), _as_float64(other)
    finite = np.isfinite(left)
    if not np.array_equal(finite, np.isfinite(right)) or not np.array_equal(
        left[~finite], right[~finite], equal_nan=True
    ):
        return _wrong(name, "NaN or infinity where the other has none")
    left, right = left[finite], right[finite]
    said = ~are_fillers(left, right)
    left, right = left[said], right[said]
    if left.size == 0:
        return Difference(name, True)
    error = np.abs(left - right)
    scale = float(np.abs(left).max())
    largest = float(error.max())
    noise, signal = float(error @ error), float(left @ left)
    snr = math.inf if noise == 0 else (10 * math.log10(signal / noise) if signal else -math.inf)
    norms = math.sqrt(signal * float(right @ right))
    cosine = 1.0 if noise == 0 else (float(left @ right) / norms if norms else 0.0)
    agrees = bool((error <= tolerance.rtol * np.abs(left) + tolerance.atol * scale).all())
    scaled = largest / scale if scale else largest
    reason = "" if agrees else f"off by {largest:.3g} where values reach {scale:.3g} ({snr:.0f} dB)"
    return Difference(
        name,
        agrees,
        reason,
        max_abs=largest,
        max_scaled=scaled,
        snr_db=snr,
        cosine=cosine,
    )


def _wrong(name: str, reason: str) -> Difference:
    return Difference(
        name,
        False,
        reason,
        max_abs=math.inf,
        max_scaled=math.inf,
        snr_db=-math.inf,
        cosine=0.0,
    )


def _is_floating(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "fc" or dtype.name in _MANTISSA_BITS


def _as_float64(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Flat real numbers; complex ones become pairs."""
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag])
    return array.astype(np.float64).reshape(-1)
