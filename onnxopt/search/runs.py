"""Running the models of a subject: their outputs, and where their time goes."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onnxopt.accuracy import Fidelity, Score, decision_kind, fidelity
from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.numerics.decisions import Flips, expected_flips
from onnxopt.parallel import Crew
from onnxopt.parallel.quiet import quiet
from onnxopt.runtime.outputs import outputs_of_all
from onnxopt.runtime.trial import Feed
from onnxopt.search.subject import Choices, Subject
from onnxopt.workbench import Workbench

__all__ = ["Judged", "Profile", "Runs", "noise_of"]

#: Samples that plans are chosen by.
_PROBES = 24
#: With so many decisions, flips are counted and not foretold.
_ENOUGH = 1000
#: A plan that is this far over the budget in dB on so many of them is not run on the others.
_FIRST_PROBES, _HOPELESS = 6, 6.0
#: A profile is of so many runs, and of as many as go into so many seconds.
_LEAST_RUNS, _MOST_RUNS, _PROFILE_SECONDS = 10, 200, 0.3
#: Where runs take long, they are the less disturbed, and so many are enough after so many seconds.
_FEWEST_RUNS, _LONG_SECONDS = 5, 1.0


@dataclasses.dataclass(frozen=True)
class Profile:
    """Seconds of one run.

    Attributes:
        seconds: By region.
        total: Of all kernels.
        misplaced: Regions that did not get the kernels that their treatment is for.
    """

    seconds: dict[str, float]
    total: float
    misplaced: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Judged:
    """How true a plan is, and how sure that is.

    Attributes:
        fidelity: Over the probes.
        spread: Standard error of the noise of the worst output, as a share of the noise.
        flips: Decisions that are expected to be others, of the worst output; None where none is a
            choice between scores, or there are enough to count.
    """

    fidelity: Fidelity
    spread: float
    flips: Flips | None = None


class Runs:
    """Runs plans of a subject on samples to learn from.

    Args:
        subject: Builds the models.
        bench: Samples and a place to run them.

    Attributes:
        probes: Samples that plans are chosen by.
    """

    def __init__(self, subject: Subject, bench: Workbench) -> None:
        self._subject, self._bench = subject, bench
        self.probes = bench.calibration.first(_PROBES)
        with subject.build({}) as path:
            self._names, self._expected = self.outputs(path, self.probes)

    def outputs(
        self, path: pathlib.Path, feeds: Sequence[Feed]
    ) -> tuple[list[str], list[list[Any]]]:
        """Names of the outputs, and what they are, by feed.

        Raises:
            RuntimeRefusalError: When the runtime refuses the model.
            RuntimeCrashError: When it crashes.
        """
        worker = self._bench.worker
        info = worker.open(path, threads=self._bench.threads)
        try:
            return (
                [port.name for port in info.outputs],
                [worker.run(info.session, feed) for feed in feeds],
            )
        finally:
            worker.close(info.session)

    def profile(self, choices: Choices) -> Profile:
        """Where the time of one run goes.

        Raises:
            RuntimeRefusalError: When the runtime refuses the model.
            RuntimeCrashError: When it crashes.
        """
        worker = self._bench.worker
        with self._subject.build(choices) as path, quiet():
            info = worker.open(path, threads=self._bench.threads, profile=True)
            try:
                start = time.perf_counter()
                runs = 0
                while not _is_enough(runs, time.perf_counter() - start):
                    worker.run(info.session, self.probes[0])
                    runs += 1
                kernels = worker.kernels(info.session)
            finally:
                worker.close(info.session)
        spent: dict[str, float] = {}
        for kernel in kernels:
            owner = self._subject.owner(kernel.node)
            if owner is not None:
                spent[owner] = spent.get(owner, 0.0) + kernel.undisturbed
        total = sum(kernel.undisturbed for kernel in kernels)
        return Profile(spent, total, tuple(self._subject.misplaced(kernels, choices)))

    def fidelities(
        self, plans: Sequence[Choices], count: int, crew: Crew
    ) -> Iterator[Fidelity | None]:
        """How true plans are on the first probes; None where the runtime refuses the model."""
        feeds = self.probes[:count]
        models = (self._subject.build(choices) for choices in plans)
        bench = self._bench
        for actual in outputs_of_all(crew, bench.worker, models, feeds, threads=bench.threads):
            if actual is None:
                yield None
            else:
                yield fidelity(self._expected[: len(feeds)], actual, self._names)

    def judged(self, choices: Choices) -> Judged | None:
        """How true a plan is; None when the runtime refuses the model.

        On all probes, unless the first few show that it is far over the budget: then on these.
        """
        with self._subject.build(choices) as path:
            try:
                actual = self._until_hopeless(path)
            except (RuntimeRefusalError, RuntimeCrashError):
                return None
            expected = self._expected[: len(actual)]
            found = fidelity(expected, actual, self._names)
            spread = _relative_error(expected, actual)
            if len(actual) < len(self._expected):
                return Judged(found, spread)
            return Judged(self.scored(found, path), spread, self._flips(found, expected, actual))

    def _until_hopeless(self, path: pathlib.Path) -> list[list[Any]]:
        """The outputs for all probes, or for the first few if those are bad enough."""
        worker, wanted = self._bench.worker, self._bench.budget.min_sqnr
        info = worker.open(path, threads=self._bench.threads)
        try:
            actual = [worker.run(info.session, feed) for feed in self.probes[:_FIRST_PROBES]]
            found = fidelity(self._expected[: len(actual)], actual, self._names)
            if wanted is not None and found.sqnr_db < wanted - _HOPELESS:
                return actual
            rest = self.probes[_FIRST_PROBES:]
            return actual + [worker.run(info.session, feed) for feed in rest]
        finally:
            worker.close(info.session)

    def foretold(
        self,
        found: Fidelity,
        expected: Sequence[Sequence[Any]],
        actual: Sequence[Sequence[Any]],
    ) -> Flips | None:
        """Flips to be expected of the worst output, by the noise of other samples than the probes.

        Args:
            found: How true the outputs are.
            expected: The untouched model's outputs, by sample.
            actual: The plan's.
        """
        return self._flips(found, expected, actual, self._expected)

    def _flips(
        self,
        found: Fidelity,
        expected: Sequence[Sequence[Any]],
        actual: Sequence[Sequence[Any]],
        others: Sequence[Sequence[Any]] = (),
    ) -> Flips | None:
        worst: Flips | None = None
        for index, output in enumerate(found.outputs):
            agreement = output.agreement
            if agreement is None or output.mismatch or agreement.total >= _ENOUGH:
                continue
            scores = [each[index] for each in (*expected, *others)]
            if not all(isinstance(each, np.ndarray) for each in scores):
                continue
            kind = decision_kind(scores)
            if kind is None or kind[0] not in ("top-1", "largest"):
                continue
            flips = expected_flips(
                scores[: len(expected)],
                [each[index] for each in actual],
                kind[1],
                scores[len(expected) :],
            )
            if flips is not None and (worst is None or flips.share > worst.share):
                worst = flips
        return worst

    def scored(self, found: Fidelity, path: pathlib.Path) -> Fidelity:
        """With what the user's own measure says of a model, if there is one."""
        evaluate = self._bench.budget.evaluate
        if evaluate is None:
            return found
        before = self._bench.memory.get("score of the original")
        if before is None:
            before = evaluate(str(self._bench.source))
            self._bench.memory["score of the original"] = before
        return dataclasses.replace(found, score=Score(before, evaluate(str(path))))


def _is_enough(runs: int, seconds: float) -> bool:
    """Whether a profile is of enough runs."""
    if runs < (_LEAST_RUNS if seconds < _LONG_SECONDS else _FEWEST_RUNS):
        return False
    return runs >= _MOST_RUNS or seconds >= _PROFILE_SECONDS


def noise_of(found: Fidelity) -> float:
    """Noise power relative to the signal's, summed over outputs."""
    return sum(math.inf if each.mismatch else 10 ** (-each.sqnr_db / 10) for each in found.outputs)


def _relative_error(expected: Sequence[Sequence[Any]], actual: Sequence[Sequence[Any]]) -> float:
    """Standard error of the noise of the worst output, as a share of it.

    The noise is sum n / sum s over samples of noise power n and signal power s; the error of such
    a ratio comes from the residuals n - (N / S) s (Cochran, Sampling Techniques, section 6.4).
    """
    worst = 0.0
    for index in range(len(expected[0]) if expected else 0):
        powers = [
            (float(np.square(x, dtype=np.float64).sum()), float(np.square(x - y).sum()))
            for x, y in ((a[index], b[index]) for a, b in zip(expected, actual, strict=True))
            if isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.shape == np.shape(y)
        ]
        if len(powers) < 2:
            continue
        signal, noise = np.array(powers).T
        if noise.sum() > 0 and signal.sum() > 0:
            residuals = noise - noise.sum() / signal.sum() * signal
            count = len(residuals)
            error = math.sqrt(float(np.square(residuals).sum()) * count / (count - 1))
            worst = max(worst, error / float(noise.sum()))
    return worst
