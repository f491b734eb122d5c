"""Sums that do not depend on the order of their terms, so that parts can be merged exactly."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["ExactSum"]

#: A float32 is an integer of 24 bits times a power of two of at least 2^-172.
_MANTISSA_BITS = 24
_LOWEST_POWER = -172
#: Powers of two are gathered in limbs of so many; 2^23 terms fit before an int64 is full.
_LIMB_POWERS = 16
_LIMBS = 18


class ExactSum:
    """An array of sums of float32 numbers, kept as integers.

    A term adds its mantissa, shifted, to the limb of its exponent; additions of integers are
    associative, those of floats are not (the superaccumulator of Kulisch, with lazy carries as in
    Neal, "Fast exact summation using small and large superaccumulators", 2015).

    Args:
        shape: Shape of each term.
        limbs: Sums that were gathered before, int64 [18, *shape].
    """

    def __init__(self, shape: tuple[int, ...], limbs: np.ndarray[Any, Any] | None = None) -> None:
        self.limbs = np.zeros((_LIMBS, *shape), np.int64) if limbs is None else limbs

    def add(self, term: np.ndarray[Any, Any] | float) -> None:
        """Add finite numbers; they are rounded to float32 first."""
        rounded = np.asarray(term, np.float32).astype(np.float64).reshape(-1)
        mantissa, exponent = np.frexp(rounded)
        whole = np.ldexp(mantissa, _MANTISSA_BITS).astype(np.int64)
        power = np.where(whole == 0, 0, exponent - _MANTISSA_BITS - _LOWEST_POWER)
        limb, shift = np.divmod(power.astype(np.int64), _LIMB_POWERS)
        flat = self.limbs.reshape(_LIMBS, -1)
        flat[limb, np.arange(len(whole))] += whole << shift

    def merge(self, other: ExactSum) -> None:
        """Add all terms of another."""
        self.limbs += other.limbs

    @property
    def value(self) -> np.ndarray[Any, Any]:
        """The sums, float64; the same for the same terms in any order."""
        powers = _LOWEST_POWER + _LIMB_POWERS * np.arange(_LIMBS)
        shape = (-1, *(1 for _ in self.limbs.shape[1:]))
        parts = np.ldexp(self.limbs.astype(np.float64), powers.reshape(shape))
        total = np.zeros(self.limbs.shape[1:])
        for part in parts[::-1]:
            total = total + part
        return total
