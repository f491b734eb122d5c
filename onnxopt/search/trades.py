"""What treatments gain in time or bytes, and what they cost in noise."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Mapping, Sequence

from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.parallel import ALONE, Crew
from onnxopt.parallel.quiet import quiet
from onnxopt.search.finding import Finding
from onnxopt.search.runs import Profile, Runs, noise_of
from onnxopt.search.subject import Choices, Subject
from onnxopt.workbench import Effort, Workbench

__all__ = ["NOT_FUSED", "Trades"]

NOT_FUSED = "the runtime has no fitting kernel for it"
#: Samples that a single region is tried on.
_FEW = 4
#: Seconds for trying regions alone, as one worker would take, going by the first few.
_FIRST = 2
_PATIENCE: Mapping[Effort, float] = {"low": 10.0, "medium": 45.0, "high": 240.0}


class Trades:
    """Measures what each treatment of each region gains and costs, and keeps it in a finding.

    Args:
        subject: What is treated.
        bench: Says what is to be gained, and how much time there is.
        runs: Runs the models.
        finding: Where gains, noise and seconds are written down.
    """

    def __init__(self, subject: Subject, bench: Workbench, runs: Runs, finding: Finding) -> None:
        self._subject, self._bench, self._runs = subject, bench, runs
        self._finding = finding
        self._crossing_seconds = 0.0
        self._neighbours: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
        for first, second, count in subject.borders():
            self._neighbours[first].append((second, count))
            self._neighbours[second].append((first, count))

    def measure_gains(self, regions: Sequence[str]) -> None:
        """Time regions in the untouched model and in the wholly treated ones, by the profile."""
        subject, finding = self._subject, self._finding
        self._bench.on_step("timing regions")
        untouched = self._runs.profile({}).seconds
        kinds = sorted({kind for each in regions for kind in subject.treatments(each)})
        for kind in kinds:
            choices = {region: kind for region in regions if kind in subject.treatments(region)}
            profile = self._profile(choices)
            if profile is None:
                continue
            for region in profile.misplaced:
                finding.left[region] = NOT_FUSED
            for region in choices.keys() - set(profile.misplaced):
                saved = untouched.get(region, 0.0) - profile.seconds.get(region, 0.0)
                finding.gain[region, kind] = self._worth(region, kind, saved)
                finding.seconds[region, kind] = profile.seconds.get(region, 0.0)
        finding.seconds.update({(region, ""): untouched.get(region, 0.0) for region in regions})
        self._measure_crossing(regions)

    def measure_noise(self, fastest: Choices) -> None:
        """Try each treatment alone; those that save most first, as many as patience allows."""
        finding = self._finding
        pairs = [
            (region, kind)
            for region in fastest
            for kind in self._subject.treatments(region)
            if kind == fastest[region] or finding.gain.get((region, kind), 0.0) > 0
        ]
        pairs.sort(key=lambda pair: -finding.gain[pair])
        with quiet():
            start = time.perf_counter()
            self._try_alone(pairs[:_FIRST], pairs, ALONE)
            seconds = (time.perf_counter() - start) / max(1, len(pairs[:_FIRST]))
        # Not until time is up: what is tried must not depend on how many workers try it.
        most = max(_FIRST, int(_PATIENCE[self._bench.effort] / max(seconds, 1e-9)))
        self._try_alone(pairs[_FIRST:most], pairs, self._bench.crew)
        known = sorted(noise for noise in finding.noise.values() if noise < math.inf)
        typical = known[len(known) // 2] if known else 1.0
        for pair in pairs:
            finding.noise.setdefault(pair, typical)

    def best_kinds(self, regions: Sequence[str]) -> dict[str, str]:
        """The treatment of each region that saves most, or loses least."""
        gain, chosen = self._finding.gain, {}
        for region in regions:
            kinds = [kind for kind in self._subject.treatments(region) if (region, kind) in gain]
            if kinds:
                chosen[region] = max(kinds, key=lambda kind: gain[region, kind])
        return chosen

    def cost(self, plan: Choices, region: str, kind: str | None) -> float:
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

    def rate(self, plan: Choices, region: str, kind: str | None) -> float:
        """Noise that a move takes away for what it costs."""
        noise, now = self._finding.noise, plan[region]
        less = noise[region, now] - (0.0 if kind is None else noise[region, kind])
        cost = self.cost(plan, region, kind)
        # What costs nothing is best, and the more so the more noise it takes away.
        return less / cost if cost > 1e-9 else less * 1e12

    def moves(self, plan: Choices) -> list[tuple[str, str | None]]:
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

    def _try_alone(
        self, pairs: Sequence[tuple[str, str]], all_pairs: Sequence[tuple[str, str]], crew: Crew
    ) -> None:
        """Write down the noise of treatments by themselves; infinite where one does not run."""
        plans = [{region: kind} for region, kind in pairs]
        for pair, found in zip(pairs, self._runs.fidelities(plans, _FEW, crew), strict=True):
            number = len(self._finding.noise) + 1
            self._bench.on_step(f"trying regions alone, {number} of {len(all_pairs)}")
            self._finding.noise[pair] = math.inf if found is None else noise_of(found)

    def _measure_crossing(self, regions: Sequence[str]) -> None:
        """Seconds that it takes to convert one number, from a plan that converts many of them.

        Every other region is treated; what the model then takes longer than its regions and what is
        common to all plans is what the borders take.
        """
        fastest = self.best_kinds(regions)
        plan = dict(list(fastest.items())[::2])
        crossing = self._crossing(plan)
        if not crossing or not self._subject.borders():
            return
        whole, mixed = self._profile(fastest), self._profile(plan)
        if whole is None or mixed is None:
            return
        common = whole.total - sum(whole.seconds.values())
        own = sum(
            self._finding.seconds.get((region, plan.get(region, "")), 0.0) for region in regions
        )
        extra = crossing - self._crossing(fastest)
        if extra > 0:
            self._crossing_seconds = max(0.0, (mixed.total - own - common) / extra)

    def _profile(self, choices: Choices) -> Profile | None:
        """Where time goes; None when the runtime refuses the model."""
        try:
            return self._runs.profile(choices)
        except (RuntimeRefusalError, RuntimeCrashError):
            return None

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
