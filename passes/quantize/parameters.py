"""Scale and zero point of a tensor, from the range that it should cover."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

__all__ = ["Parameters", "before_affine", "for_range"]

#: Tensors that are zero throughout still need a scale.
_LEAST_SCALE = float(np.finfo(np.float32).tiny) * 256


@dataclasses.dataclass(frozen=True)
class Parameters:
    """value = scale * (q - zero_point).

    Attributes:
        scale: Above 0, exact in float32.
        zero_point: Within the range of the type.
        signed: Signed integers rather than unsigned ones.
        bits: 8 or 16.
    """

    scale: float
    zero_point: int
    signed: bool = False
    bits: int = 8

    @property
    def least(self) -> int:
        """The least integer."""
        return int(np.iinfo(self.dtype).min)

    @property
    def greatest(self) -> int:
        """The greatest integer."""
        return int(np.iinfo(self.dtype).max)

    @property
    def low(self) -> float:
        """The least number that it can hold."""
        return self.scale * (self.least - self.zero_point)

    @property
    def high(self) -> float:
        """The greatest."""
        return self.scale * (self.greatest - self.zero_point)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the numbers."""
        return np.dtype(f"{'int' if self.signed else 'uint'}{self.bits}")


def for_range(
    low: float,
    high: float,
    signed: bool = False,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    bits: int = 8,
) -> Parameters:
    """Parameters that cover a range and 0.

    Args:
        low: Its lower end.
        high: Its upper end.
        signed: Signed integers rather than unsigned ones.
        bounds: What the tensor is clamped to anyway, 0 within. The result saturates at or inside
            them, so that the clamp has nothing left to do.
        bits: 8 or 16.
    """
    low, high = max(min(low, 0.0), bounds[0]), min(max(high, 0.0), bounds[1])
    steps = 2**bits - 1
    least = -(2 ** (bits - 1)) if signed else 0
    scale = max((high - low) / steps, _LEAST_SCALE)
    zero = round(-low / scale)  # steps below 0
    if zero:  # rounding may have put an end of the range outside the bounds
        scale = min(scale, -bounds[0] / zero)
    if steps - zero:
        scale = min(scale, bounds[1] / (steps - zero))
    return Parameters(_float32(scale), least + zero, signed, bits)


def before_affine(
    after: Parameters, factor: float, summand: float
) -> tuple[Parameters, Parameters]:
    """Parameters of x and of y = factor x + summand that share their 8-bit numbers.

    scale_x = scale_y / factor, and the zero points differ by summand / scale_y, which must be
    whole: scale_y is made a little larger until it is. A summand of less than half a step is left
    away.

    Returns:
        Those of x and of y.

    Raises:
        ValueError: When the zero point of x is not within its type.
    """
    steps = math.floor(abs(summand) / after.scale)
    if steps == 0:
        scale, shift = after.scale, 0
        if abs(summand) > after.scale / 2:
            raise ValueError("the summand is about one step")
    else:
        scale, shift = abs(summand) / steps, round(math.copysign(steps, summand))
    least = after.least
    below = round((after.zero_point - least) * after.scale / scale)  # a larger step, fewer below 0
    y = dataclasses.replace(after, scale=_float32(scale), zero_point=least + below)
    # factor * scale_x * (q - zero_x) + shift * scale_y = scale_y * (q - zero_x + shift)
    zero = y.zero_point + shift
    if not least <= zero <= after.greatest:
        raise ValueError("zero is out of range before the step")
    return dataclasses.replace(after, scale=_float32(scale / factor), zero_point=zero), y


def _float32(number: float) -> float:
    return float(np.float32(number))
