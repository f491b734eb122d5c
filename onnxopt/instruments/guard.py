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
#: Models that are timed one after the other may differ so much by the machine's drift alone.
_MOST_DRIFT = 0.9
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
        together: Whether both models may be in memory at once. If not, they are timed one after the
            other, which tells less: only a loss that is much larger than usual drift counts.

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
        if self._together:
            measured = self._race([self._original, candidate])
        else:
            measured = self._sum_up(self._original.seconds, candidate.seconds)
        for _ in range(_SECOND_OPINIONS):
            if not self._is_slower(measured):
                return None, measured
            measured = self._second_opinion(candidate)
        if not self._is_slower(measured):
            return None, measured
        return Objection(
            "speed", f"it runs at {measured.median:.2f}x the original's speed"
        ), measured

    def _is_slower(self, measured: Ratio) -> bool:
        before, after = (statistics.median(samples) for samples in self.samples)
        certain = measured.is_slower if self._together else measured.high < _MOST_DRIFT
        return certain and after - before > _SHORTEST_LOSS_SECONDS

    def _second_opinion(self, candidate: Trial) -> Ratio:
        if self._together:
            return self._race([self._original.model, candidate.model])
        times = [self._race_alone(trial.model) for trial in (self._original, candidate)]
        return self._sum_up(*times)

    def _race(self, models: Sequence[Trial | str | os.PathLike[str]]) -> Ratio:
        self.samples = race(
            self._worker,
            models,
            self._feed,
            threads=self._threads,
            seconds=self._seconds,
            enough=lambda samples: ratio(*samples).low > _CLEARLY_FASTER,
        )
        return ratio(*self.samples)

    def _race_alone(self, model: str | os.PathLike[str]) -> list[float]:
        (times,) = race(
            self._worker, [model], self._feed, threads=self._threads, seconds=self._seconds
        )
        return times

    def _sum_up(self, before: Sequence[float], after: Sequence[float]) -> Ratio:
        rounds = min(len(before), len(after))
        self.samples = [list(before[:rounds]), list(after[:rounds])]
        return ratio(*self.samples)
