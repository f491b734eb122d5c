"""The search, on a subject whose treatments are known: factors that make noise of a known size."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import pytest

from onnxopt.accuracy import Budget
from onnxopt.parallel.processes import Processes
from onnxopt.runtime.messages import Kernel
from onnxopt.runtime.worker import Worker, shared_worker
from onnxopt.samples import Samples
from onnxopt.search import search
from onnxopt.search.runs import Profile, Runs
from onnxopt.workbench import Workbench
from tests.differential import parse

#: Noise that treating a region adds to the output, relative to it.
_NOISE = {"a": 0.02, "b": 0.3, "c": 0.001, "d": 0.05}
_SAVED = {"a": 100, "b": 400, "c": 50, "d": 100}


class Sums:
    """y = x + what each treated region adds of an input of its own, which is unlike all others."""

    def __init__(
        self,
        folder: pathlib.Path,
        misplaced: Sequence[str] = (),
        truly_saved: Mapping[str, int] = _SAVED,
    ) -> None:
        self._folder, self._misplaced, self._truly_saved = folder, misplaced, truly_saved
        self.built: list[Mapping[str, str]] = []

    def regions(self) -> Sequence[str]:
        return list(_NOISE)

    def treatments(self, region: str) -> Sequence[str]:
        del region
        return ["rough"]

    @contextlib.contextmanager
    def build(self, choices: Mapping[str, str]) -> Iterator[pathlib.Path]:
        self.built.append(dict(choices))
        lines, last = [], "x0"
        for index, region in enumerate(_NOISE, start=1):
            if region in choices:
                lines.append(f"t{index} = Mul(x{index}, {region})")
                lines.append(f"s{index} = Add({last}, t{index})")
                last = f"s{index}"
        inputs = ", ".join(f"float[N, 64] x{index}" for index in range(len(_NOISE) + 1))
        body = "\n".join([*lines, f"y = Identity({last})"])
        used = {each: np.array(_NOISE[each], np.float32) for each in choices}
        model = parse(f"g ({inputs}) => (float[N, 64] y) {{ {body} }}", used)
        path = self._folder / f"built{len(self.built)}.onnx"
        onnx.save(model, path)
        yield path

    def owner(self, kernel: str) -> str | None:
        del kernel
        return None

    def misplaced(self, kernels: Sequence[Kernel], choices: Mapping[str, str]) -> Sequence[str]:
        assert kernels
        return [region for region in self._misplaced if region in choices]

    def bytes_saved(
        self, region: str, treatment: str, others: Mapping[str, str] | None = None
    ) -> int:
        del treatment, others
        return _SAVED[region]

    def size(self, choices: Mapping[str, str]) -> int:
        return 1000 - sum(self._truly_saved[region] for region in choices)

    def borders(self) -> Sequence[tuple[str, str, int]]:
        return []

    def crosses(self, first: str | None, second: str | None) -> bool:
        return first != second


def _bench(worker: Worker, budget: Budget, uneven: bool = False) -> Workbench:
    generator = np.random.default_rng(0)
    feeds: list[dict[str, np.ndarray]] = [
        {
            f"x{index}": generator.standard_normal((1, 64)).astype(np.float32)
            for index in range(len(_NOISE) + 1)
        }
        for _ in range(12)
    ]
    if uneven:  # as much noise altogether, but one sample of those that plans are chosen by has it
        for number, feed in enumerate(feeds[:8]):
            for index in range(1, len(_NOISE) + 1):
                feed[f"x{index}"] *= np.float32(np.sqrt(8) if number == 3 else 0.01)
    return Workbench(
        source=pathlib.Path("unused"),
        calibration=Samples(lambda: feeds[:8]),
        held_out=Samples(lambda: feeds[8:]),
        given=True,
        budget=budget,
        worker=worker,
        seconds=0.01,
        goal="size",  # no time is measured then
    )


@pytest.mark.parametrize(
    ("decibels", "left"),
    [(5.0, set()), (20.0, {"b"}), (30.0, {"b", "d"}), (45.0, {"a", "b", "d"})],
)
def test_what_makes_most_noise_for_its_gain_is_given_up_first(
    decibels: float, left: set[str], tmp_path: pathlib.Path
) -> None:
    finding = search(
        Sums(tmp_path), _bench(shared_worker(), Budget(min_sqnr=decibels, min_agreement=None))
    )
    assert _NOISE.keys() - finding.choices.keys() == left == finding.left.keys()
    assert finding.fidelity is not None
    assert finding.fidelity.sqnr_db >= decibels
    assert all(finding.left.values())
    for region, noise in _NOISE.items():
        assert finding.noise[region, "rough"] == pytest.approx(noise**2, rel=0.4)


@pytest.mark.parametrize("uneven", [False, True])
def test_noise_that_is_the_work_of_one_sample_may_be_worse_elsewhere(
    uneven: bool, tmp_path: pathlib.Path
) -> None:
    budget = Budget(min_sqnr=5.0, min_agreement=None)
    finding = search(Sums(tmp_path), _bench(shared_worker(), budget, uneven))
    careful = [point for point in finding.curve if "what other samples may take" in point.objection]
    assert bool(careful) is uneven
    assert (finding.choices.keys() == _NOISE.keys()) is not uneven


@pytest.mark.parametrize(("decibels", "few"), [(45.0, True), (12.0, False), (None, False)])
def test_a_plan_that_is_far_over_the_budget_is_run_on_few_samples(
    decibels: float | None, few: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = shared_worker()
    budget = Budget(min_sqnr=decibels, min_agreement=None)
    runs = Runs(Sums(tmp_path), _bench(worker, budget))
    count, run = 0, worker.run

    def counted(session: int, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        nonlocal count
        count += 1
        return run(session, feed)

    monkeypatch.setattr(worker, "run", counted)
    judged = runs.judged(dict.fromkeys(_NOISE, "rough"))
    assert judged is not None
    assert judged.fidelity.sqnr_db == pytest.approx(10.4, abs=1.5)
    assert judged.fidelity.samples == count
    assert (count < len(runs.probes)) is few


def test_nothing_within_the_budget_means_the_untouched_model(tmp_path: pathlib.Path) -> None:
    finding = search(
        Sums(tmp_path), _bench(shared_worker(), Budget(min_sqnr=90.0, min_agreement=None))
    )
    assert finding.choices == {}
    assert finding.reason
    assert {point.objection == "" for point in finding.curve} == {False}


def test_a_region_without_its_kernel_is_left_alone(tmp_path: pathlib.Path) -> None:
    subject = Sums(tmp_path, misplaced=["c"])
    finding = search(subject, _bench(shared_worker(), Budget(min_sqnr=20.0, min_agreement=None)))
    assert set(finding.choices) == {"a", "d"}
    assert finding.left["c"] == "the runtime has no fitting kernel for it"


def test_flips_are_foretold_from_margins_and_noise(tmp_path: pathlib.Path) -> None:
    """Eight decisions prove nothing by themselves, and the noise of `b` is as large as margins."""
    finding = search(
        Sums(tmp_path), _bench(shared_worker(), Budget(min_sqnr=None, min_agreement=0.9))
    )
    assert "b" not in finding.choices
    assert "c" in finding.choices
    assert any("margins and noise" in point.objection for point in finding.curve)


@pytest.mark.parametrize(
    ("mixed_seconds", "fastest"), [(3.0, {"b", "c", "d"}), (9.0, {"a", "b", "c", "d"})]
)
def test_a_sum_of_parts_that_misleads_is_measured(
    mixed_seconds: float,
    fastest: set[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Treating `a` takes longer by itself; yet without it, something in between may."""

    def profile(runs: Runs, choices: Mapping[str, str]) -> Profile:
        del runs
        seconds = {name: 0.5 if name in choices else 1.0 for name in _NOISE}
        seconds["a"] = 1.5 if "a" in choices else 1.0
        mixed = bool(choices) and "a" not in choices
        return Profile(seconds, mixed_seconds if mixed else 3.5, ())

    monkeypatch.setattr(Runs, "profile", profile)
    bench = _bench(shared_worker(), Budget(min_sqnr=None, min_agreement=None))
    finding = search(Sums(tmp_path), dataclasses.replace(bench, goal="balanced"))
    first = max((point.choices for point in finding.curve), key=len)
    assert set(first) == fastest


@pytest.mark.parametrize(("seconds", "last"), [(3.6, {"a", "c"}), (4.5, {"a", "c", "d"})])
def test_a_little_time_is_spent_where_decisions_are_few(
    seconds: float, last: set[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def profile(runs: Runs, choices: Mapping[str, str]) -> Profile:
        del runs
        total = seconds if set(choices) == {"a", "c"} else 3.5 if "d" in choices else 9.0
        return Profile({name: 0.5 if name in choices else 1.0 for name in _NOISE}, total, ())

    monkeypatch.setattr(Runs, "profile", profile)
    bench = _bench(shared_worker(), Budget(min_sqnr=None, min_agreement=0.85))
    finding = search(Sums(tmp_path), dataclasses.replace(bench, goal="latency"))
    timed = [set(point.choices) for point in finding.curve if point.speed is not None]
    assert timed == [last]


class TwoWays(Sums):
    """Each region can be treated in a second way, which does the same."""

    def treatments(self, region: str) -> Sequence[str]:
        return ["rough"] if region == "d" else ["rough", "other"]

    def misplaced(self, kernels: Sequence[Kernel], choices: Mapping[str, str]) -> Sequence[str]:
        """Kernels for the first way are there for each region alone, not beside others."""
        rough = [region for region in self._misplaced if choices.get(region) == "rough"]
        return rough if len(set(choices.values())) > 1 or "b" not in choices else []


def test_a_region_without_its_kernel_gets_another_treatment(tmp_path: pathlib.Path) -> None:
    subject = TwoWays(tmp_path, misplaced=["c"])
    budget = Budget(min_sqnr=20.0, min_agreement=None)
    finding = search(subject, _bench(shared_worker(), budget))
    assert finding.choices == {"a": "rough", "c": "other", "d": "rough"}
    assert "c" not in finding.left


def test_the_curve_tells_of_every_plan(tmp_path: pathlib.Path) -> None:
    finding = search(
        Sums(tmp_path), _bench(shared_worker(), Budget(min_sqnr=20.0, min_agreement=None))
    )
    whole = next(point for point in finding.curve if len(point.choices) == len(_NOISE))
    assert "below the budget" in whole.objection
    last = finding.curve[-1]
    assert dict(last.choices) == finding.choices
    assert last.speed is not None


def test_several_workers_find_what_one_finds(tmp_path: pathlib.Path) -> None:
    budget = Budget(min_sqnr=20.0, min_agreement=None)
    alone = search(Sums(tmp_path), _bench(shared_worker(), budget))
    with Processes(2) as crew:
        bench = dataclasses.replace(_bench(shared_worker(), budget), crew=crew)
        together = search(Sums(tmp_path), bench)
    assert together.choices == alone.choices
    assert together.noise == alone.noise
    assert together.fidelity == alone.fidelity
    assert together.left == alone.left


@pytest.mark.parametrize(
    ("most", "left"),
    [(850, set()), (849, {"c"}), (800, {"c"}), (799, {"c", "a"}), (499, set(_NOISE))],
)
def test_what_makes_the_file_too_large_is_left_alone(
    most: int, left: set[str], tmp_path: pathlib.Path
) -> None:
    truly_saved = {"a": -300, "b": 400, "c": -50, "d": 100}
    bench = _bench(shared_worker(), Budget(min_sqnr=5.0, min_agreement=None))
    bench.most_bytes = most
    finding = search(Sums(tmp_path, truly_saved=truly_saved), bench)
    assert _NOISE.keys() - finding.choices.keys() == left
    assert all("larger" in finding.left[region] for region in left)
