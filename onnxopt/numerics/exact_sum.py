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
#: Terms wait until there are so many.
_MOST_PENDING = 64


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
        self._limbs = np.zeros((_LIMBS, *shape), np.int64) if limbs is None else limbs
        self._pending: list[np.ndarray[Any, Any] | tuple[float, ...] | float] = []

    def add(self, term: np.ndarray[Any, Any] | tuple[float, ...] | float) -> None:
        """Add finite numbers; they are rounded to float32 first, and an array is not copied."""
        self._pending.append(term)
        if len(self._pending) >= _MOST_PENDING:
            self._settle()

    def merge(self, other: ExactSum) -> None:
        """Add all terms of another."""
        self._settle()
        self._limbs = self._limbs + other.limbs

    @property
    def limbs(self) -> np.ndarray[Any, Any]:
        """What stands for the sums, int64 [18, *shape]."""
        self._settle()
        return self._limbs

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

    def _settle(self) -> None:
        """Add the pending terms, together, since that takes hardly longer than adding one."""
        if not self._pending:
            return
        rounded = np.array(self._pending, np.float32)
        terms = rounded.astype(np.float64).reshape(len(rounded), -1)
        self._pending.clear()
        mantissa, exponent = np.frexp(terms)
        power = np.where(terms == 0, 0, exponent - _MANTISSA_BITS - _LOWEST_POWER)
        limb, shift = np.divmod(power, _LIMB_POWERS)
        # At most 2^40 each, so that the sums are exact in float64 too.
        shifted = np.ldexp(mantissa, _MANTISSA_BITS + shift)
        place = limb * terms.shape[1] + np.arange(terms.shape[1])
        sums = np.bincount(place.reshape(-1), shifted.reshape(-1), _LIMBS * terms.shape[1])
        self._limbs += sums.astype(np.int64).reshape(self._limbs.shape)
