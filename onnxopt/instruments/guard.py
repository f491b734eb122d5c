"""The result must not be larger and not be slower than the original."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence

from onnxopt.instruments.verify import Objection
from onnxopt.runtime.statistics import Ratio, ratio
from onnxopt.runtime.trial import Feed, Trial, race
from onnxopt.runtime.worker import Worker

__all__ = ["SpeedGuard", "size_objection"]


#: A candidate that seems slower is timed again so many times, in sessions of its own.
_SECOND_OPINIONS = 2
#: A race need not go on when even the low end of the ratio is above this.
_CLEARLY_FASTER = 1.05
#: Nobody notices less than this per run, and on a busy machine nothing can measure it.
_SHORTEST_LOSS_SECONDS = 2e-6


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
        """Object to a candidate that several measurements agree is slower.

        The later ones load both models anew: where a session's memory happens to lie can make it
        some percent slower for as long as it lives.

        Returns:
            The objection or None, and how many times faster the candidate is.
        """
        measured = self._measure([self._original, candidate])
        for _ in range(_SECOND_OPINIONS):
            if not self._is_slower(measured):
                return None, measured
            measured = self._measure([self._original.model, candidate.model])
        if not self._is_slower(measured):
            return None, measured
        return Objection(
            "speed", f"it runs at {measured.median:.2f}x the original's speed"
        ), measured

    def _is_slower(self, measured: Ratio) -> bool:
        before, after = (statistics.median(samples) for samples in self.samples)
        return measured.is_slower and after - before > _SHORTEST_LOSS_SECONDS

    def _measure(self, models: Sequence[Trial | str | os.PathLike[str]]) -> Ratio:
        first, second = models
        if self._together or not (isinstance(first, Trial) and isinstance(second, Trial)):
            self.samples = race(
                self._worker,
                models,
                self._feed,
                threads=self._threads,
                seconds=self._seconds,
                enough=lambda samples: ratio(*samples).low > _CLEARLY_FASTER,
            )
        else:
            rounds = min(len(first.seconds), len(second.seconds))
            self.samples = [first.seconds[:rounds], second.seconds[:rounds]]
        return ratio(*self.samples)
