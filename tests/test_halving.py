"""Searching by halves."""

from __future__ import annotations

import pytest

from onnxopt.halving import first_that


@pytest.mark.parametrize("high", [1, 2, 3, 7, 8, 100])
def test_it_finds_each(high: int) -> None:
    for first in range(1, high + 1):
        told: list[str] = []
        asked: list[int] = []

        def holds(number: int, first: int = first, asked: list[int] = asked) -> bool:
            asked.append(number)
            return number >= first

        assert first_that(holds, 0, high, told.append) == first
        assert all(0 < number < high for number in asked)
        assert len(told) == len(asked) <= (high - 1).bit_length()
        assert [text.partition(" of ")[0] for text in told] == [
            str(number) for number in range(1, len(told) + 1)
        ]
        assert not told or int(told[-1].partition(" of ")[2]) - len(told) in (0, 1)
