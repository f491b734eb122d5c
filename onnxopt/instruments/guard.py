"""The result must not be larger and not be slower than the original."""

from __future__ import annotations

from onnxopt.instruments.verify import Objection
from onnxopt.runtime.statistics import Ratio, ratio
from onnxopt.runtime.trial import Feed, Trial, race
from onnxopt.runtime.worker import Worker

__all__ = ["SpeedGuard", "size_objection"]


def size_objection(before: int, after: int) -> Objection | None:
    """Object to a result with more bytes than the original."""
    if after <= before:
        return None
    return Objection("size", f"the file grows from {before:,} to {after:,} bytes")


class SpeedGuard:
    """Times a candidate against the original, and again before it objects.

    Args:
        worker: Where models run.
        original: What the original showed.
        feed: Input of the timed runs.
        threads: Threads for one operator.
        seconds: Time for one comparison.
        together: Whether both models may be in memory at once. If not, the times that each trial
            took by itself are compared first.

    Attributes:
        samples: Seconds for one run of the original and of the last candidate, by round.
    """

    def __init__(
        self,
        worker: Worker,
        original: Trial,
        feed: Feed,
        *,
        threads: int,
        seconds: float,
        together: bool,
    ) -> None:
        self._worker = worker
        self._original = original
        self._feed = feed
        self._threads = threads
        self._seconds = seconds
        self._together = together
        self.samples: list[list[float]] = [[], []]

    def judge(self, candidate: Trial) -> tuple[Objection | None, Ratio]:
        """Object to a candidate that two measurements agree is slower.

        Returns:
            The objection or None, and how many times faster the candidate is.
        """
        measured = self._measure(candidate, self._together)
        if measured.is_slower:
            measured = self._measure(candidate, together=True)
        if not measured.is_slower:
            return None, measured
        return Objection(
            "speed", f"it runs at {measured.median:.2f}x the original's speed"
        ), measured

    def _measure(self, candidate: Trial, together: bool) -> Ratio:
        if together:
            self.samples = race(
                self._worker,
                [self._original, candidate],
                self._feed,
                threads=self._threads,
                seconds=self._seconds,
            )
        else:
            rounds = min(len(self._original.seconds), len(candidate.seconds))
            self.samples = [self._original.seconds[:rounds], candidate.seconds[:rounds]]
        return ratio(*self.samples)
