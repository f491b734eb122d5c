"""The result must not be larger and not be slower than the original."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from onnxopt.instruments.verify import Objection
from onnxopt.runtime.statistics import Ratio, ratio
from onnxopt.runtime.trial import race
from onnxopt.runtime.worker import Worker

__all__ = ["SpeedGuard", "size_objection"]

#: Models up to this size are timed in turn, both loaded at once.
_RACE_LIMIT_BYTES = 512 * 2**20


def size_objection(before: int, after: int) -> Objection | None:
    """Object to a result with more bytes than the original.

    A few bytes for longer length prefixes, which depend on the order of fields, do not count.
    """
    if after <= before + 16:
        return None
    return Objection("size", f"the file grows from {before:,} to {after:,} bytes")


class SpeedGuard:
    """Times a candidate against the original, and again before it objects.

    Args:
        worker: Where models run.
        original: Path of the original.
        original_bytes: Its size; two large models are not loaded at once.
        feed: Input of the timed runs.
        threads: Threads for one operator.
        seconds: Time for one comparison.
    """

    def __init__(
        self,
        worker: Worker,
        original: str | os.PathLike[str],
        original_bytes: int,
        feed: dict[str, Any],
        threads: int,
        seconds: float,
    ) -> None:
        self._worker = worker
        self._original = original
        self._together = original_bytes <= _RACE_LIMIT_BYTES
        self._feed = feed
        self._threads = threads
        self._seconds = seconds
        self.samples: list[list[float]] = [[], []]

    def compare(
        self, candidate: str | os.PathLike[str], first_look: Sequence[Sequence[float]]
    ) -> Ratio:
        """How many times faster the candidate is than the original.

        Args:
            candidate: Path of the candidate.
            first_look: Times of the original and the candidate from sessions of their own, which
                do for large models.
        """
        if self._together:
            self.samples = self._race(candidate)
        else:
            rounds = min(map(len, first_look))
            self.samples = [list(samples[:rounds]) for samples in first_look]
        return ratio(*self.samples)

    def objection(
        self, candidate: str | os.PathLike[str], first_look: Sequence[Sequence[float]]
    ) -> tuple[Objection | None, Ratio]:
        """Object to a candidate that two measurements agree is slower."""
        measured = self.compare(candidate, first_look)
        if not measured.is_slower:
            return None, measured
        again = ratio(*self._race(candidate))
        if not again.is_slower:
            return None, again
        return Objection("speed", f"it runs at {again.median:.2f}x the original's speed"), again

    def _race(self, candidate: str | os.PathLike[str]) -> list[list[float]]:
        return race(
            self._worker,
            [self._original, candidate],
            self._feed,
            threads=self._threads,
            seconds=self._seconds,
        )
