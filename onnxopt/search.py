"""Which region of a model gets which treatment, under an accuracy budget and by measured time.

Nothing here knows what a treatment is. Whoever asks describes the regions, what can be done to
each, and how to write a model with some of that done (`Subject`).

1. The model is run as it is and with the whole of it treated in each way; the runtime's own profile
   says how long each region takes.
2. Each treatment of each region is tried alone, on a few samples: how much noise it makes in the
   outputs. Noise of small, unrelated errors adds up, so the sum over a plan foretells the plan's.
3. From the fastest plan, the move that takes away most noise for the time it costs is made again
   and again, down to the untouched model. The first plan on that way that keeps the budget in
   whole-model runs is found by bisection, and regions are put back where the budget still holds.
4. The last word have samples that nothing was chosen by, and a paired race against the untouched
   model. A plan that fails there is given up for one further down.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from onnxopt.accuracy import Fidelity, Score, fidelity
from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.parallel import ALONE, Crew
from onnxopt.runtime.messages import Kernel
from onnxopt.runtime.outputs import outputs_of_all
from onnxopt.runtime.statistics import Ratio, ratio, undisturbed
from onnxopt.runtime.trial import Feed, race
from onnxopt.workbench import Effort, Workbench

__all__ = ["Choices", "Finding", "Point", "Subject", "search"]

#: A treatment for each region that gets one.
Choices = Mapping[str, str]

#: Samples that plans are chosen by, and those of them that a single region is tried on.
_PROBES = 24
_FEW = 4
#: Seconds for trying regions alone, as one worker would take, going by the first few.
_FIRST = 2
_PATIENCE: Mapping[Effort, float] = {"low": 10.0, "medium": 45.0, "high": 240.0}
#: How many times it is tried to put a region back.
_PUT_BACK: Mapping[Effort, int] = {"low": 0, "medium": 6, "high": 24}
#: Other samples may be worse than those that a plan was chosen by: so many standard errors of the
#: noise are allowed for, and each time that other samples are worse indeed, so many more.
_MARGIN = 1.0
#: A profile is of so many runs, and of as many as go into so many seconds.
_LEAST_RUNS, _MOST_RUNS, _PROFILE_SECONDS = 10, 200, 0.3
_NOT_FUSED = "the runtime has no fitting kernel for it"
#: A race whose outcome is not certain is run again, for so many times as long.
_LONGER = 4.0
#: On a busy machine intervals are wide; then the least disturbed runs have to be faster by this.
_CLEARLY_FASTER = 1.04


class Subject(Protocol):
    """What is to be treated."""

    def regions(self) -> Sequence[str]:
        """The regions, by name."""

    def treatments(self, region: str) -> Sequence[str]:
        """What can be done to a region."""

    def build(self, choices: Choices) -> contextlib.AbstractContextManager[pathlib.Path]:
        """A model with these treatments, as a file that is there while the context lasts."""

    def owner(self, kernel: str) -> str | None:
        """The region that a kernel of the runtime, by name, belongs to."""

    def misplaced(self, kernels: Sequence[Kernel], choices: Choices) -> Sequence[str]:
        """Regions for which the runtime did not choose the kernels that a treatment is for."""

    def bytes_saved(self, region: str, treatment: str) -> int:
        """How much smaller a treatment makes the file."""

    def borders(self) -> Sequence[tuple[str, str, int]]:
        """Regions that hand numbers to one another, and how many numbers.

        Where one of the two has a treatment of `crossing_costs` and the other has none, these
        numbers have to be converted.
        """

    def crosses(self, first: str | None, second: str | None) -> bool:
        """Whether numbers are converted between regions with these treatments; None is none."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A plan that was tried on whole-model runs.

    Attributes:
        choices: The plan.
        sqnr_db: Of the worst output.
        agreement: Share of equal decisions, where an output is one.
        score: What the user's own measure gave.
        speed: Times faster than the untouched model; None where it was not timed.
        objection: What is over the budget, or why the plan was given up, or empty.
    """

    choices: Choices
    sqnr_db: float
    agreement: float | None
    score: float | None
    speed: Ratio | None
    objection: str

    @classmethod
    def of(
        cls, choices: Choices, found: Fidelity, objection: str | None, speed: Ratio | None = None
    ) -> Point:
        """A plan and how true it is."""
        agreement = None if found.agreement is None else found.agreement.fraction
        score = None if found.score is None else found.score.after
        return cls(dict(choices), found.sqnr_db, agreement, score, speed, objection or "")


@dataclasses.dataclass
class Finding:
    """What came out.

    Attributes:
        choices: The best plan; empty when nothing helps within the budget.
        reason: Why nothing helps, else empty.
        speed: The plan's paired ratio to the untouched model.
        fidelity: How true it is on samples that nothing was chosen by.
        curve: All whole plans that were tried.
        noise: Relative noise power of each treatment alone, by region and treatment.
        gain: Seconds that each treatment saves, by region and treatment.
        seconds: Of each region, by region and treatment; the treatment "" is none.
        left: Why a region is left alone, by region.
    """

    choices: dict[str, str]
    reason: str = ""
    speed: Ratio | None = None
    fidelity: Fidelity | None = None
    curve: list[Point] = dataclasses.field(default_factory=list)
    noise: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    gain: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    seconds: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    left: dict[str, str] = dataclasses.field(default_factory=dict)


def search(subject: Subject, bench: Workbench) -> Finding:
    """Find the best plan within the budget."""
    return _Search(subject, bench).run()


@dataclasses.dataclass(frozen=True)
class _Profile:
    """Seconds of one run by region, and of all kernels; regions that got other kernels."""

    seconds: dict[str, float]
    total: float
    misplaced: tuple[str, ...]


class _Search:
    def __init__(self, subject: Subject, bench: Workbench) -> None:
        self._subject, self._bench = subject, bench
        self._worker = bench.worker
        self._finding = Finding({})
        self._probes = bench.calibration.first(_PROBES)
        with subject.build({}) as path:
            self._names, self._expected = self._outputs(path, self._probes)
        self._tried: dict[tuple[tuple[str, str], ...], tuple[Fidelity, float] | None] = {}
        self._crossing_seconds = 0.0
        self._neighbours: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
        for first, second, count in subject.borders():
            self._neighbours[first].append((second, count))
            self._neighbours[second].append((first, count))

    def run(self) -> Finding:
        finding, regions = self._finding, list(self._subject.regions())
        if not regions:
            finding.reason = "there is nothing to treat"
            return finding
        self._measure_gains(regions)
        fastest = self._fastest(regions)
        if not fastest:
            finding.reason = "no treatment of any region is faster"
            return finding
        self._measure_noise(fastest)
        way = self._descend(fastest)
        self._choose(way)
        for region in regions:
            if region not in finding.choices and region not in finding.left:
                finding.left[region] = self._why_left(region)
        return finding

    # What treatments gain

    def _measure_gains(self, regions: Sequence[str]) -> None:
        """Time regions in the untouched model and in the wholly treated ones, by the profile."""
        bench, subject, finding = self._bench, self._subject, self._finding
        bench.on_step("timing regions")
        untouched = self._profiled({}).seconds
        kinds = sorted({kind for each in regions for kind in subject.treatments(each)})
        for kind in kinds:
            choices = {region: kind for region in regions if kind in subject.treatments(region)}
            try:
                profile = self._profiled(choices)
            except (RuntimeRefusalError, RuntimeCrashError):
                continue
            for region in profile.misplaced:
                finding.left[region] = _NOT_FUSED
            for region in choices.keys() - set(profile.misplaced):
                saved = untouched.get(region, 0.0) - profile.seconds.get(region, 0.0)
                finding.gain[region, kind] = self._worth(region, kind, saved)
                finding.seconds[region, kind] = profile.seconds.get(region, 0.0)
        self._finding.seconds.update(
            {(region, ""): untouched.get(region, 0.0) for region in regions}
        )
        self._measure_crossing(regions)

    def _measure_crossing(self, regions: Sequence[str]) -> None:
        """Seconds that it takes to convert one number, from a plan that converts many of them.

        Every other region is treated; what the model then takes longer than its regions and what is
        common to all plans is what the borders take.
        """
        fastest = self._best_kinds(regions)
        plan = dict(list(fastest.items())[::2])
        crossing = self._crossing(plan)
        if not crossing or not self._subject.borders():
            return
        try:
            whole, mixed = self._profiled(fastest), self._profiled(plan)
        except (RuntimeRefusalError, RuntimeCrashError):
            return
        common = whole.total - sum(whole.seconds.values())
        own = sum(
            self._finding.seconds.get((region, plan.get(region, "")), 0.0) for region in regions
        )
        extra = crossing - self._crossing(fastest)
        if extra > 0:
            self._crossing_seconds = max(0.0, (mixed.total - own - common) / extra)

    def _crossing(self, plan: Choices) -> int:
        """How many numbers are converted at borders under a plan."""
        return sum(
            count
            for first, second, count in self._subject.borders()
            if self._subject.crosses(plan.get(first), plan.get(second))
        )

    def _worth(self, region: str, kind: str, seconds: float) -> float:
        """What a treatment is worth, in seconds or bytes or a mixture, after the user's goal."""
        saved = self._subject.bytes_saved(region, kind)
        if self._bench.goal == "size":
            return float(saved)
        # Balanced: a megabyte is worth 50 microseconds.
        return seconds + (saved * 5e-11 if self._bench.goal == "balanced" else 0.0)

    def _profiled(self, choices: Choices) -> _Profile:
        """Where the time of one run goes.

        Raises:
            RuntimeRefusalError: When the runtime refuses the model.
            RuntimeCrashError: When it crashes.
        """
        with self._subject.build(choices) as path:
            info = self._worker.open(path, threads=self._bench.threads, profile=True)
            try:
                end = time.perf_counter() + _PROFILE_SECONDS
                runs = 0
                while runs < _LEAST_RUNS or (runs < _MOST_RUNS and time.perf_counter() < end):
                    self._worker.run(info.session, self._probes[0])
                    runs += 1
                kernels = self._worker.kernels(info.session)
            finally:
                self._worker.close(info.session)
        spent: dict[str, float] = {}
        for kernel in kernels:
            owner = self._subject.owner(kernel.node)
            if owner is not None:
                spent[owner] = spent.get(owner, 0.0) + kernel.undisturbed
        total = sum(kernel.undisturbed for kernel in kernels)
        return _Profile(spent, total, tuple(self._subject.misplaced(kernels, choices)))

    # What treatments cost

    def _measure_noise(self, fastest: Choices) -> None:
        """Try each treatment alone; those that save most first, until patience is at its end."""
        finding = self._finding
        pairs = [
            (region, kind)
            for region in fastest
            for kind in self._subject.treatments(region)
            if kind == fastest[region] or finding.gain.get((region, kind), 0.0) > 0
        ]
        pairs.sort(key=lambda pair: -finding.gain[pair])
        start = time.perf_counter()
        self._try_alone(pairs[:_FIRST], pairs)
        seconds = (time.perf_counter() - start) / max(1, len(pairs[:_FIRST]))
        # Not until time is up: what is tried must not depend on how many workers try it.
        most = max(_FIRST, int(_PATIENCE[self._bench.effort] / max(seconds, 1e-9)))
        self._try_alone(pairs[_FIRST:most], pairs, crew=self._bench.crew)
        known = sorted(noise for noise in finding.noise.values() if noise < math.inf)
        typical = known[len(known) // 2] if known else 1.0
        for pair in pairs:
            finding.noise.setdefault(pair, typical)

    def _try_alone(
        self,
        pairs: Sequence[tuple[str, str]],
        all_pairs: Sequence[tuple[str, str]],
        crew: Crew = ALONE,
    ) -> None:
        """Write down the noise of treatments by themselves; infinite where one does not run."""
        feeds = self._probes[:_FEW]
        models = (self._subject.build({region: kind}) for region, kind in pairs)
        outputs = outputs_of_all(crew, self._worker, models, feeds, threads=self._bench.threads)
        for pair, actual in zip(pairs, outputs, strict=True):
            number = len(self._finding.noise) + 1
            self._bench.on_step(f"trying regions alone, {number} of {len(all_pairs)}")
            noise = math.inf
            if actual is not None:
                noise = _noise(fidelity(self._expected[: len(feeds)], actual, self._names))
            self._finding.noise[pair] = noise

    def _judged(self, choices: Choices) -> tuple[Fidelity, float] | None:
        """How true a plan is, and the standard error of its noise relative to the noise."""
        with self._subject.build(choices) as path:
            try:
                _, actual = self._outputs(path, self._probes)
            except (RuntimeRefusalError, RuntimeCrashError):
                return None
            found = fidelity(self._expected, actual, self._names)
            return self._scored(found, path), _relative_error(self._expected, actual)

    def _scored(self, found: Fidelity, path: pathlib.Path) -> Fidelity:
        evaluate = self._bench.budget.evaluate
        if evaluate is None:
            return found
        before = self._bench.memory.get("score of the original")
        if before is None:
            before = evaluate(str(self._bench.source))
            self._bench.memory["score of the original"] = before
        return dataclasses.replace(found, score=Score(before, evaluate(str(path))))

    def _outputs(
        self, path: pathlib.Path, feeds: Sequence[Feed]
    ) -> tuple[list[str], list[list[Any]]]:
        info = self._worker.open(path, threads=self._bench.threads)
        try:
            return (
                [port.name for port in info.outputs],
                [self._worker.run(info.session, feed) for feed in feeds],
            )
        finally:
            self._worker.close(info.session)

    # The way from the fastest plan to the untouched model

    def _best_kinds(self, regions: Sequence[str]) -> dict[str, str]:
        """The treatment of each region that saves most, or loses least."""
        gain, chosen = self._finding.gain, {}
        for region in regions:
            kinds = [kind for kind in self._subject.treatments(region) if (region, kind) in gain]
            if kinds:
                chosen[region] = max(kinds, key=lambda kind: gain[region, kind])
        return chosen

    def _fastest(self, regions: Sequence[str]) -> dict[str, str]:
        """The plan that should be fastest.

        From all regions treated, those are left alone one by one with which more is lost than is
        saved by not having to convert numbers around them.
        """
        plan = self._best_kinds(regions)
        while plan:
            region = min(plan, key=lambda each: self._cost(plan, each, None))
            if self._cost(plan, region, None) >= 0:
                break
            del plan[region]
            self._finding.left[region] = "no treatment of it is faster here"
        return plan

    def _cost(self, plan: Choices, region: str, kind: str | None) -> float:
        """What is lost when a region's treatment becomes another one, in the unit of gains."""
        gain, now = self._finding.gain, plan[region]
        cost = gain[region, now] - (0.0 if kind is None else gain[region, kind])
        if self._bench.goal == "size":
            return cost
        crosses = self._subject.crosses
        for other, count in self._neighbours[region]:
            before, after = crosses(now, plan.get(other)), crosses(kind, plan.get(other))
            cost += (after - before) * count * self._crossing_seconds
        return cost

    def _descend(self, fastest: dict[str, str]) -> list[dict[str, str]]:
        """Plans from the fastest down to the untouched one, each by the best next move."""
        way, plan = [dict(fastest)], dict(fastest)
        while plan:
            region, kind = max(self._moves(plan), key=lambda move: self._rate(plan, *move))
            if kind is None:
                del plan[region]
            else:
                plan[region] = kind
            way.append(dict(plan))
        return way

    def _moves(self, plan: Choices) -> list[tuple[str, str | None]]:
        """Changes of one region that make less noise."""
        noise = self._finding.noise
        moves: list[tuple[str, str | None]] = []
        for region, now in plan.items():
            moves.append((region, None))
            moves.extend(
                (region, kind)
                for kind in self._subject.treatments(region)
                if noise.get((region, kind), math.inf) < noise[region, now]
                and self._finding.gain.get((region, kind), 0.0) > 0
            )
        return moves

    def _rate(self, plan: Choices, region: str, kind: str | None) -> float:
        """Noise that a move takes away for what it costs."""
        noise, now = self._finding.noise, plan[region]
        less = noise[region, now] - (0.0 if kind is None else noise[region, kind])
        cost = self._cost(plan, region, kind)
        # What costs nothing is best, and the more so the more noise it takes away.
        return less / cost if cost > 1e-9 else less * 1e12

    # Whole plans

    def _choose(self, way: Sequence[dict[str, str]]) -> None:
        """The first plan on the way that keeps the budget everywhere and is faster."""
        finding, bench, start = self._finding, self._bench, 0
        margin = _MARGIN
        while start < len(way) - 1:
            index = self._first_good(way, start, margin)
            if not way[index]:
                break
            plan = self._put_back(way, index, margin)
            plan = self._without_misplaced(plan)
            if not plan:
                finding.reason = _NOT_FUSED
                break
            objection = self._last_word(plan)
            if objection is None:
                finding.choices = plan
                return
            finding.reason = objection
            if finding.fidelity is not None and not bench.budget.objection(finding.fidelity):
                break  # it was too slow, and plans further down save less
            start, margin = index + max(1, (len(way) - index) // 16), margin + _MARGIN
        finding.choices = {}
        finding.reason = finding.reason or "every plan is over the budget"

    def _first_good(self, way: Sequence[dict[str, str]], start: int, margin: float) -> int:
        """Bisect: the first plan from ``start`` that keeps the budget with a margin."""
        if self._keeps_budget(way[start], margin):
            return start
        low, high = start, len(way) - 1  # the last is the untouched model
        while high - low > 1:
            middle = (low + high) // 2
            if self._keeps_budget(way[middle], margin):
                high = middle
            else:
                low = middle
        return high

    def _put_back(self, way: Sequence[dict[str, str]], index: int, margin: float) -> dict[str, str]:
        """Try to treat again what was given up for little."""
        plan, gain = dict(way[index]), self._finding.gain
        given_up = [region for region in way[0] if plan.get(region) != way[0][region]]
        given_up.sort(key=lambda region: -gain[region, way[0][region]])
        tries = _PUT_BACK[self._bench.effort]
        for region in given_up[1 : tries + 1]:
            tried = {**plan, region: way[0][region]}
            if self._keeps_budget(tried, margin):
                plan = tried
        return plan

    def _without_misplaced(self, plan: dict[str, str]) -> dict[str, str]:
        """Leave regions alone that do not get their kernels in this very plan."""
        while plan:
            misplaced = self._profiled(plan).misplaced
            if not misplaced:
                break
            plan = {region: kind for region, kind in plan.items() if region not in misplaced}
            self._finding.left.update(dict.fromkeys(misplaced, _NOT_FUSED))
        return plan

    def _keeps_budget(self, plan: dict[str, str], margin: float) -> bool:
        key = tuple(sorted(plan.items()))
        if key not in self._tried:
            self._bench.on_step(f"trying a plan with {len(plan)} regions")
            self._tried[key] = self._judged(plan)
        judged = self._tried[key]
        if judged is None:
            return False
        found, spread = judged
        budget = self._bench.budget
        if budget.min_sqnr is not None:
            allowance = 10 * math.log10(1 + margin * spread)
            budget = dataclasses.replace(budget, min_sqnr=budget.min_sqnr + allowance)
        objection = budget.objection(found)
        self._finding.curve.append(Point.of(plan, found, objection))
        return objection is None

    def _last_word(self, plan: dict[str, str]) -> str | None:
        """What held-out samples and a race against the untouched model have against a plan."""
        bench, finding = self._bench, self._finding
        bench.on_step("checking the plan on other samples")
        feeds = bench.held_out.first(64)
        with self._subject.build({}) as before, self._subject.build(plan) as after:
            names, expected = self._outputs(before, feeds)
            _, actual = self._outputs(after, feeds)
            finding.fidelity = self._scored(fidelity(expected, actual, names), after)
            objection = bench.budget.objection(finding.fidelity)
            if objection is not None:
                finding.curve.append(Point.of(plan, finding.fidelity, objection))
                return objection
            for seconds in (bench.seconds, _LONGER * bench.seconds):
                samples = race(
                    self._worker,
                    [before, after],
                    self._probes[0],
                    threads=bench.threads,
                    seconds=seconds,
                )
                finding.speed = ratio(*samples)
                if not finding.speed.is_noise:
                    break
        assert finding.speed is not None
        quiet = undisturbed(samples[0]) / undisturbed(samples[1])
        if bench.goal != "size" and not (finding.speed.is_faster or quiet > _CLEARLY_FASTER):
            objection = f"the best plan runs at {finding.speed.median:.2f}x"
        finding.curve.append(Point.of(plan, finding.fidelity, objection, finding.speed))
        return objection

    def _why_left(self, region: str) -> str:
        noise = self._finding.noise
        known = [noise[pair] for pair in noise if pair[0] == region and noise[pair] < math.inf]
        if not self._finding.choices:
            return self._finding.reason
        if not known or min(known) <= 0:
            return "leaving it alone is faster"
        return f"alone it takes the output to {-10 * math.log10(min(known)):.1f} dB"


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


def _noise(found: Fidelity) -> float:
    """Noise power relative to the signal's, summed over outputs."""
    return sum(math.inf if each.mismatch else 10 ** (-each.sqnr_db / 10) for each in found.outputs)
