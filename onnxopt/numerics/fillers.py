"""Numbers that stand where there is nothing, such as -1e9 in masked scores.

They are no part of the answer, and so large that next to them no error would count.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["are_fillers"]

Array = np.ndarray[Any, Any]

#: Exporters write -1e4, -65504, -1e9 or the lowest float.
_LEAST_FILLER = 9_999.0
#: A filler is so many times as large as all that is said beside it.
_APART = 500.0


def are_fillers(expected: Array, actual: Array) -> Array:
    """Which elements hold one far larger number than all others, the same in both arrays.

    Args:
        expected: Finite numbers, [n].
        actual: The same of another model.

    Returns:
        Booleans, [n]; all false where there is no such number, or nothing beside it.
    """
    magnitudes = np.abs(expected)
    largest = magnitudes.max(initial=0.0)
    found: Array = magnitudes == largest
    if (
        largest < _LEAST_FILLER
        or found.all()
        or not np.array_equal(expected[found], actual[found])
        or largest < _APART * magnitudes[~found].max()
    ):
        return np.zeros(expected.shape, bool)
    return found
