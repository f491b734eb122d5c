"""The search for the first of many, by halves, that says how far it is."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["first_that"]


def first_that(
    holds: Callable[[int], bool],
    low: int,
    high: int,
    on_try: Callable[[str], None] = lambda text: None,
) -> int:
    """The least number for which something holds, if it holds for all after one for which it does.

    Args:
        holds: Asked about numbers between; it does not hold for ``low`` and holds for ``high``.
        low: A number for which it does not hold.
        high: A number for which it holds.
        on_try: Told before each question which one it is of how many, such as ``2 of 5``.
    """
    number = 0
    while high - low > 1:
        number += 1
        still = (high - low - 1).bit_length()
        on_try(f"{number} of {number - 1 + still}")
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
