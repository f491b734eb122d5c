"""Scale and zero point of a tensor, from the range that it should cover."""

from __future__ import annotations

import dataclasses
import math

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
        signed: int8 rather than uint8.
    """

    scale: float
    zero_point: int
    signed: bool = False

    @property
    def low(self) -> float:
        """The least number that it can hold."""
        return self.scale * ((-128 if self.signed else 0) - self.zero_point)

    @property
    def high(self) -> float:
        """The greatest."""
        return self.scale * ((127 if self.signed else 255) - self.zero_point)

    @property
    def dtype(self) -> np.dtype[np.int8] | np.dtype[np.uint8]:
        """The type of the numbers."""
        return np.dtype(np.int8) if self.signed else np.dtype(np.uint8)


def for_range(
    low: float,
    high: float,
    signed: bool = False,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Parameters:
    """Parameters that cover a range and 0.

    Args:
        low: Its lower end.
        high: Its upper end.
        signed: int8 rather than uint8.
        bounds: What the tensor is clamped to anyway, 0 within. The result saturates at or inside
            them, so that the clamp has nothing left to do.
    """
    low, high = max(min(low, 0.0), bounds[0]), min(max(high, 0.0), bounds[1])
    least, steps = (-128 if signed else 0), 255
    scale = max((high - low) / steps, _LEAST_SCALE)
    zero = round(-low / scale)  # steps below 0
    if zero:  # rounding may have put an end of the range outside the bounds
        scale = min(scale, -bounds[0] / zero)
    if steps - zero:
        scale = min(scale, bounds[1] / (steps - zero))
    return Parameters(_float32(scale), least + zero, signed)


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
    least = -128 if after.signed else 0
    below = round((after.zero_point - least) * after.scale / scale)  # a larger step, fewer below 0
    y = Parameters(_float32(scale), least + below, after.signed)
    # factor * scale_x * (q - zero_x) + shift * scale_y = scale_y * (q - zero_x + shift)
    zero = y.zero_point + shift
    if not least <= zero <= least + 255:
        raise ValueError("zero is out of range before the step")
    return Parameters(_float32(scale / factor), zero, after.signed), y


def _float32(number: float) -> float:
    return float(np.float32(number))
