"""From what treatments gain and cost to the best plan within the budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from onnxopt.accuracy import fidelity
from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.halving import first_that
from onnxopt.numerics.decisions import Flips
from onnxopt.numerics.prediction import most_noise
from onnxopt.runtime.statistics import ratio, undisturbed
from onnxopt.runtime.trial import race
from onnxopt.search.finding import Finding, Point
from onnxopt.search.runs import Judged, Runs
from onnxopt.search.subject import Choices, Subject
from onnxopt.search.trades import NOT_FUSED, Trades
from onnxopt.workbench import Effort, Workbench

__all__ = ["search"]

#: How many times it is tried to put a region back.
_PUT_BACK: Mapping[Effort, int] = {"low": 0, "medium": 6, "high": 24}
#: So many regions are tried without their treatment where the sum of the parts is misleading, and
#: left without it if that takes so much of the time.
_LEFT_ALONE, _NOTICEABLY = 8, 0.99
#: Other samples may be worse than those that a plan was chosen by, the more so since the luckiest
#: of many plans is chosen: so many standard deviations are allowed for, and each time that other
#: samples are worse indeed, so many more.
_MARGIN, _WIDENED = 1.8, 0.7
#: Flips that are so small a part of the budget are none to do anything about; else plans are looked
#: at so many steps further on, and one is taken that takes at most so many times as long.
_HARDLY_ANY = 0.25
_STEPS, _HARDLY_LONGER = (1, 2, 3, 4, 6, 8, 12, 16), 1.08
#: A race whose outcome is not certain is run again, for so many times as long.
_LONGER = 4.0
#: On a busy machine intervals are wide; then the least disturbed runs have to be faster by this.
_CLEARLY_FASTER = 1.04
#: Until a file fits, at least this part of what is treated is left alone at a time.
_ROUNDS = 16
_LARGER = "the file would be larger than the original"


def search(subject: Subject, bench: Workbench) -> Finding:
    """Find the best plan within the budget."""
    return _Search(subject, bench).run()


class _Search:
    def __init__(self, subject: Subject, bench: Workbench) -> None:
        self._subject, self._bench = subject, bench
        self._finding = Finding({})
        self._runs = Runs(subject, bench)
        self._trades = Trades(subject, bench, self._runs, self._finding)
        self._tried: dict[tuple[tuple[str, str], ...], Judged | None] = {}

    def run(self) -> Finding:
        finding, regions = self._finding, list(self._subject.regions())
        if not regions:
            finding.reason = "there is nothing to treat"
            return finding
        self._trades.measure_gains(regions)
        fastest = self._fastest(regions)
        if not fastest:
            finding.reason = f"no treatment of any region {self._better}"
            return finding
        self._trades.measure_noise(fastest)
        way = self._descend(fastest)
        self._choose(way)
        for region in regions:
            if region not in finding.choices and region not in finding.left:
                finding.left[region] = self._why_left(region)
        return finding

    @property
    def _better(self) -> str:
        """What is asked of a treatment."""
        smaller = self._bench.goal == "size"
        return "makes the file smaller" if smaller else "is faster here"

    # The way from the fastest plan to the untouched model

    def _fastest(self, regions: Sequence[str]) -> dict[str, str]:
        """The plan that should be fastest.

        From all regions treated, those are left alone one by one with which more is lost than is
        saved by not having to convert numbers around them. Where what comes of that is slower all
        the same, as a kernel between two regions may be for one of them alone, each region is left
        alone only if that is measured to help.
        """
        plan = self._trades.best_kinds(regions)
        whole, worse = dict(plan), []
        while plan:
            region = min(plan, key=lambda each: self._trades.cost(plan, each, None))
            if self._trades.cost(plan, region, None) >= 0:
                break
            del plan[region]
            worse.append(region)
        if worse and self._bench.goal != "size":
            seconds = self._seconds(whole)
            if seconds < self._seconds(plan):
                plan = whole
                for region in worse[:_LEFT_ALONE]:
                    less = {each: kind for each, kind in plan.items() if each != region}
                    tried = self._seconds(less)
                    if tried < _NOTICEABLY * seconds:
                        plan, seconds = less, tried
        alone = [region for region in worse if region not in plan]
        self._finding.left.update(dict.fromkeys(alone, f"no treatment of it {self._better}"))
        return plan

    def _seconds(self, plan: dict[str, str]) -> float:
        """Time of all kernels in one run; without end where the runtime refuses the model."""
        try:
            return self._runs.profile(plan).total
        except (RuntimeRefusalError, RuntimeCrashError):
            return math.inf

    def _descend(self, fastest: dict[str, str]) -> list[dict[str, str]]:
        """Plans from the fastest down to the untouched one, each by the best next move."""
        way, plan = [dict(fastest)], dict(fastest)
        while plan:
            region, kind = max(
                self._trades.moves(plan), key=lambda move: self._trades.rate(plan, *move)
            )
            if kind is None:
                del plan[region]
            else:
                plan[region] = kind
            way.append(dict(plan))
        return way

    # Whole plans

    def _choose(self, way: Sequence[dict[str, str]]) -> None:
        """The first plan on the way that keeps the budget everywhere and is faster."""
        finding, start = self._finding, 0
        margin = _MARGIN
        while start < len(way) - 1:
            index = self._first_good(way, start, margin)
            if not way[index]:
                break
            surer = self._surer(way, index, margin)
            plan = self._put_back(way, index, margin) if surer == index else dict(way[surer])
            plan = self._without_misplaced(plan, margin)
            if not plan:
                finding.reason = NOT_FUSED
                break
            plan = self._no_larger(plan)
            if not plan:
                finding.reason = _LARGER
                break
            objection = self._last_word(plan)
            if objection is None:
                finding.choices = plan
                return
            finding.reason = objection
            self._tried[_key(plan)] = None  # nor is it to be come back to
            if finding.speed is not None:
                break  # it was too slow, and plans further down save less
            start, margin = index + max(1, (len(way) - index) // 16), margin + _WIDENED
        finding.choices = {}
        finding.reason = finding.reason or "every plan is over the budget"

    def _first_good(self, way: Sequence[dict[str, str]], start: int, margin: float) -> int:
        """Bisect: the first plan from ``start`` that keeps the budget with a margin."""
        if self._keeps_budget(way[start], margin):
            return start
        return first_that(
            lambda index: self._keeps_budget(way[index], margin),
            start,
            len(way) - 1,  # the untouched model
            lambda text: self._bench.on_step(f"trying whole plans, {text}"),
        )

    def _surer(self, way: Sequence[dict[str, str]], index: int, margin: float) -> int:
        """A plan further on that takes hardly longer, where too few decisions prove the budget.

        What was given up first took away most noise for its time, and so does what comes next; an
        estimate from a few samples is no reason to forgo it.
        """
        wanted, judged = self._bench.budget.min_agreement, self._tried.get(_key(way[index]))
        if wanted is None or judged is None or judged.flips is None or self._bench.goal == "size":
            return index
        if judged.flips.share <= _HARDLY_ANY * (1 - wanted):
            return index
        most, surer = _HARDLY_LONGER * self._seconds(way[index]), index
        for step in _STEPS:
            if index + step < len(way) - 1 and self._seconds(way[index + step]) <= most:
                surer = index + step
        return surer if self._keeps_budget(way[surer], margin) else index

    def _put_back(self, way: Sequence[dict[str, str]], index: int, margin: float) -> dict[str, str]:
        """Try to treat again what was given up for little."""
        plan, gain = dict(way[index]), self._finding.gain
        given_up = [region for region in way[0] if plan.get(region) != way[0][region]]
        given_up.sort(key=lambda region: -gain[region, way[0][region]])
        tries = _PUT_BACK[self._bench.effort]
        chosen = given_up[1 : tries + 1]
        for number, region in enumerate(chosen, start=1):
            self._bench.on_step(f"treating regions again, {number} of {len(chosen)}")
            tried = {**plan, region: way[0][region]}
            if self._keeps_budget(tried, margin):
                plan = tried
        return plan

    def _without_misplaced(self, plan: dict[str, str], margin: float) -> dict[str, str]:
        """Do something else with regions that do not get their kernels in this very plan.

        Each gets the next best of its treatments, as long as there is one that saves anything and
        the budget holds; then it is left alone.
        """
        refused: set[tuple[str, str]] = set()
        while plan:
            misplaced = self._runs.profile(plan).misplaced
            if not misplaced:
                break
            refused.update((region, plan[region]) for region in misplaced)
            kept = {region: kind for region, kind in plan.items() if region not in misplaced}
            other = {region: self._other_kind(region, refused) for region in misplaced}
            repaired = {**kept, **{region: kind for region, kind in other.items() if kind}}
            if repaired != kept and not self._keeps_budget(repaired, margin):
                repaired = kept
            plan = repaired
            left = [region for region in misplaced if region not in plan]
            self._finding.left.update(dict.fromkeys(left, NOT_FUSED))
        return plan

    def _other_kind(self, region: str, refused: set[tuple[str, str]]) -> str:
        """The treatment that saves most of those that were not refused; empty if none saves."""
        gain = self._finding.gain
        kinds = [
            kind
            for kind in self._subject.treatments(region)
            if (region, kind) not in refused and gain.get((region, kind), 0.0) > 0
        ]
        return max(kinds, key=lambda kind: gain[region, kind], default="")

    def _no_larger(self, plan: dict[str, str]) -> dict[str, str]:
        """Leave regions alone until the file fits, those first that make it grow most.

        A region grows where its weights are also read by something else, so that they stay as they
        are beside their 8-bit copy, or where they weigh less than the nodes that are added.
        """
        most, saved = self._bench.most_bytes, self._subject.bytes_saved
        while plan and most is not None:
            excess = self._subject.size(plan) - most
            if excess <= 0:
                break
            growing = sorted(plan, key=lambda region: saved(region, plan[region], plan))
            least = 1 + len(plan) // _ROUNDS  # what is left alone may cost conversions around it
            for count, region in enumerate(growing):
                shrinks = saved(region, plan[region], plan)
                if count >= least and (excess <= 0 or shrinks >= 0):
                    break
                excess += shrinks
                plan = {key: kind for key, kind in plan.items() if key != region}
                self._finding.left[region] = _LARGER
        return plan

    def _keeps_budget(self, plan: dict[str, str], margin: float) -> bool:
        key = _key(plan)
        if key not in self._tried:
            self._tried[key] = self._runs.judged(plan)
        judged = self._tried[key]
        if judged is None:
            return False
        objection = self._objection(judged, margin)
        self._finding.curve.append(Point.of(plan, judged.fidelity, objection))
        return objection is None

    def _objection(self, judged: Judged, margin: float) -> str | None:
        """What is over the budget, or may be on other samples."""
        budget = self._bench.budget
        over = budget.objection(judged.fidelity)
        if over is None and budget.min_sqnr is not None:
            factor = most_noise(judged.spread, margin)
            careful = dataclasses.replace(
                budget, min_sqnr=budget.min_sqnr + 10 * math.log10(factor)
            )
            over = careful.objection(judged.fidelity)
            if over is not None and math.isinf(factor):
                over = "so few samples make the noise that nothing can be said of others"
            elif over is not None:
                over += f": {budget.min_sqnr:g} dB, and what other samples may take of it"
        return over or self._too_many(judged.flips, margin)

    def _too_many(self, flips: Flips | None, margin: float) -> str | None:
        """What is wrong with the decisions that are expected to be others."""
        wanted = self._bench.budget.min_agreement
        if wanted is None or flips is None:
            return None
        # Luck does not help an estimate as it helps a count, so its error is for retries only.
        most = flips.share + math.sqrt(2) * (margin - _MARGIN) * flips.error
        if most <= 1 - wanted:
            return None
        return (
            f"by margins and noise, {most:.1%} of decisions are expected to be others, and the "
            f"budget is {1 - wanted:.1%}"
        )

    def _last_word(self, plan: dict[str, str]) -> str | None:
        """What held-out samples and a race against the untouched model have against a plan."""
        bench, finding = self._bench, self._finding
        bench.on_step("checking the plan on other samples")
        feeds = bench.held_out.first(64)
        with self._subject.build({}) as before, self._subject.build(plan) as after:
            names, expected = self._runs.outputs(before, feeds)
            _, actual = self._runs.outputs(after, feeds)
            finding.fidelity = self._runs.scored(fidelity(expected, actual, names), after)
            objection = bench.budget.objection(finding.fidelity) or self._too_many(
                self._runs.foretold(finding.fidelity, expected, actual), _MARGIN
            )
            if objection is not None:
                finding.curve.append(Point.of(plan, finding.fidelity, objection))
                return objection
            for seconds in (bench.seconds, _LONGER * bench.seconds):
                samples = race(
                    bench.worker,
                    [before, after],
                    self._runs.probes[0],
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
            return "the model is faster with it in float"
        decibels, budget = -10 * math.log10(min(known)), self._bench.budget.min_sqnr
        words = f"treated, it alone would take the output to {decibels:.1f} dB"
        if budget is not None and decibels < budget:
            return f"{words}, below the budget of {budget:g} dB"
        return f"{words}, and others save more time for their noise"


def _key(plan: Choices) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(plan.items()))
