"""The road itself: fold, prune, distill, fold, quantize, distill again, encode.

    onnxopt compress model.onnx smaller.onnx --data train/ --target-latency 0.5

Each stage makes a file of the last one's. After each the file is measured against the original:
its size, its speed (paired), and its answers on samples that no stage learned from. What comes out
is the model nearest to the target among those that stay inside the accuracy budget; the road is
walked again with less pruning when the budget is exceeded.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxopt.accuracy import Budget, Fidelity
from onnxopt.compress.aim import aim
from onnxopt.compress.journal import InterruptedCompressionError, Journal, Step
from onnxopt.compress.judge import Judge, Speed
from onnxopt.compress.report import CompressReport, StageReport
from onnxopt.compress.settings import CompressSettings
from onnxopt.errors import ModelError, OnnxoptError, RuntimeCrashError, RuntimeRefusalError
from onnxopt.model import bytes_on_disk, copy, load, save
from onnxopt.optimizer import Settings, optimize
from onnxopt.report.formats import seconds_text
from onnxopt.runtime.probe import environment
from onnxopt.runtime.statistics import Ratio
from onnxopt.training.checkpoints import fingerprint
from onnxopt.training.distillation import DistillSettings, distill

__all__ = ["compress"]

#: After a road that cost too much, the next one prunes this much less.
_LESS = 0.6
#: Where there is time to spare, quantization is tried with so much less noise: a quarter of it.
_LESS_NOISE_DB = 6.0
#: To aim, quantization takes about so many samples.
_FEW = 64
#: Time to spare: what is left is below this share of the target.
_ROOM = 0.97


def compress(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    data: str | os.PathLike[str],
    settings: CompressSettings | None = None,
    *,
    work: str | os.PathLike[str] | None = None,
    details: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> CompressReport:
    """Make a model smaller and faster, training it to answer as it did.

    Args:
        source: The model.
        target: Where to write the result.
        data: A folder of ``.npz`` feeds or one ``.npz`` of stacked samples. One in ten is held out
            of all stages and judges them.
        settings: Which road to take.
        work: Folder for what is done so far, from which the same call goes on after an
            interruption; beside the target when None. It is removed in the end.
        details: Look at the result layer by layer, for the report.
        on_step: Told what is being done.

    Raises:
        InterruptedCompressionError: On Ctrl-C; the work folder keeps what is done.
        OnnxoptError: When the model, the data and the settings do not fit together. Nothing is
            written then.
    """
    start = time.perf_counter()
    path, out = pathlib.Path(source), pathlib.Path(target)
    if out.exists() and path.exists() and out.samefile(path):
        raise ModelError(f"{out} is the input itself; name another output")
    if not out.parent.is_dir():
        raise ModelError(f"cannot write {out}: the folder {out.parent} does not exist")
    settings = settings or CompressSettings()
    kept = out.with_name(f"{out.name}.compress") if work is None else pathlib.Path(work)
    try:
        with Judge(path, pathlib.Path(data), settings, on_step) as judge:
            journal = Journal(kept, _mark(path, pathlib.Path(data), settings))
            with tempfile.TemporaryDirectory(prefix="onnxopt-compress-") as folder:
                road = _Road(path, pathlib.Path(folder), journal, settings, judge, on_step)
                report = road.walk()
                if details and road.chosen_path != path:
                    _look_closer(report, judge, road)
            on_step("writing")
            if road.chosen_path == path:
                copy(path, out)
            else:
                save(load(road.chosen_path), out, settings.external_data)
    except KeyboardInterrupt:
        raise InterruptedCompressionError(
            f"interrupted; the same command goes on from there ({kept} keeps what is done)"
        ) from None
    journal.remove()
    report.target_path = str(out)
    report.seconds = time.perf_counter() - start
    return report


def _look_closer(report: CompressReport, judge: Judge, road: _Road) -> None:
    try:
        report.layers = judge.layers(road.chosen_path, road.prepared_path)
    except (RuntimeRefusalError, RuntimeCrashError) as error:
        report.notes.append(f"Layers could not be measured: {error}")


class _Road:
    """One compression.

    Args:
        source: The original.
        folder: For files that are of no use to another run.
        journal: What is done.
        settings: Which road to take.
        judge: Measures each stage.
        on_step: Told what is being done.
    """

    def __init__(
        self,
        source: pathlib.Path,
        folder: pathlib.Path,
        journal: Journal,
        settings: CompressSettings,
        judge: Judge,
        on_step: Callable[[str], None],
    ) -> None:
        self.source, self.journal = source, journal
        self.settings, self.judge, self.on_step = settings, judge, on_step
        self.stages: list[StageReport] = []
        self.notes: list[str] = []
        if journal.resumed:
            self.notes.append("What an interrupted run had done before was not done again.")
        if journal.replaced:
            self.notes.append(
                f"{journal.folder} held what was done with another model, other samples, settings "
                "or versions: all was done anew."
            )
        self._files: list[pathlib.Path] = []
        self.calibration, self.few = folder / "calibration", folder / "few"
        every = max(1, len(judge.calibration) // _FEW)
        for place, step in ((self.calibration, 1), (self.few, every)):
            place.mkdir()
            for number in judge.calibration[::step]:
                np.savez(place / f"{number:07}.npz", **judge.data.feed(number))  # type: ignore[arg-type]  # numpy's stub knows one keyword of its own
        self.chosen_path = self.prepared_path = source

    def walk(self) -> CompressReport:
        """Take the road, again with less pruning where it costs too much, and choose."""
        settings = self.settings
        start = self._stage("prepare", settings.prepare, self.source, exact=True)
        self.prepared_path = start
        amounts = self._amounts(start)
        for attempt, amount in enumerate(amounts):
            done = self._attempt(start, amount)
            last = attempt == len(amounts) - 1
            if done or last:
                break
            self.notes.append(
                f"Pruning {amount:.0%} costs more than the budget allows "
                f"({self.stages[-1].objection}): the road was walked again with less."
            )
        self._choose()
        return CompressReport(
            str(self.source),
            None,
            settings.target,
            self.judge.bytes,
            self.judge.latency,
            self.stages,
            len(self.judge.data),
            len(self.judge.held_out),
            self.notes,
            environment=environment(settings.threads),
        )

    def _amounts(self, start: pathlib.Path) -> list[float]:
        """How much to prune, in each attempt; 0 where quantization alone meets the target."""
        settings = self.settings
        if not settings.prune:
            return [0.0]
        if "$amount" not in settings.prune:
            return [1.0]
        first = settings.amount
        if first is None:
            first = self.journal.decide("amount", lambda: self._aim(start))
        if not first:
            return [0.0]
        return [round(first * _LESS**attempt, 3) for attempt in range(settings.attempts)]

    def _aim(self, start: pathlib.Path) -> float:
        """The amount of pruning with which the target is met, untrained."""
        before = time.perf_counter()

        def left(amount: float) -> float:
            name = f"aiming: pruning {amount:.0%}" if amount else "aiming: without pruning"
            made = self._glanced(name, self._prune_text(amount), start) if amount else start
            if self.settings.target.of != "macs":  # which quantization leaves as they are
                made = self._glanced(name, self.settings.quantize, made)
            return self.judge.left(made, lambda: self._speed(made))

        amount, found = aim(left, self.settings.target.share)
        if amount:
            known = ", ".join(f"{share:.0%} with {each:.0%}" for each, share in found.items())
            spent = seconds_text(time.perf_counter() - before)
            self.notes.append(
                f"To aim, pruning was tried untrained: it left of the original's "
                f"{self.settings.target.of} {known}, in {spent}."
            )
        return amount

    def _attempt(self, start: pathlib.Path, amount: float) -> bool:
        """Walk the road once; whether its end meets target and budget."""
        settings = self.settings
        current = start
        if amount:
            name = f"prune {amount:.0%}" if "$amount" in settings.prune else "prune"
            pruned = self._stage(name, self._prune_text(amount), start)
            if pruned != start:
                current = self._train(pruned, "distill", settings.distill)
                current = self._folded(current)
        if settings.quantize:
            current = self._quantize(current)
        if settings.encode:
            self._stage("encode", settings.encode, current)
        end = self.stages[-1]
        return end.reached and not end.objection

    def _quantize(self, current: pathlib.Path) -> pathlib.Path:
        """Quantize as much as is fastest; then less where that serves, or train again."""
        settings = self.settings
        before = self.stages[-1]
        quantized = self._stage("quantize", settings.quantize, current)
        if quantized == current:
            return current
        full = self.stages[-1]
        budget = self._gentler(before, full)
        if budget is not None:
            less = self._stage("quantize less", settings.quantize, current, budget=budget)
            gentle = self.stages[-1]
            if less not in (current, quantized) and gentle.reached and not gentle.objection:
                return less
        if full.objection and settings.retrain_epochs:
            loop = dataclasses.replace(
                settings.distill.training, epochs=settings.retrain_epochs, steps=None
            )
            again = dataclasses.replace(settings.distill, training=loop, pruning=None)
            return self._train(quantized, "distill again", again)
        return quantized

    def _gentler(self, before: StageReport, full: StageReport) -> Budget | None:
        """What quantization may cost when it is tried once more; None where that is of no use."""
        if before.objection:
            return None  # it is not for quantization to mend
        if full.objection:
            return self.settings.budget
        if full.left > self.settings.target.share * _ROOM:
            return None
        noise = _noise(full.fidelity) - _noise(before.fidelity)
        if noise < _noise(before.fidelity):
            return None  # most of it comes from pruning
        return Budget(min_sqnr=-10 * math.log10(noise) + _LESS_NOISE_DB, min_agreement=None)

    def _train(self, student: pathlib.Path, name: str, settings: DistillSettings) -> pathlib.Path:
        """Distill; the student as it was where that fails."""
        settings = dataclasses.replace(settings, threads=self.settings.threads)

        def make(out: pathlib.Path) -> dict[str, Any]:
            report = distill(
                self.source,
                student,
                out,
                self.judge.data,
                settings,
                checkpoint=out.with_name("training.checkpoint"),
                on_step=lambda step: self.on_step(f"{name}: {step}"),
            )
            return report.to_dict()

        try:
            step = self.journal.step(f"distill {settings!r}", student, make)
        except OnnxoptError as error:
            self.notes.append(f"{name} was left out: {error}")
            return student
        self.notes += [f"{name}: {each}" for each in step.facts["notes"]]
        self._keep(step.path, name, step.seconds)
        self.stages[-1].distillation = step.facts
        return step.path

    def _prune_text(self, amount: float) -> str:
        of = "parameters" if self.settings.target.of == "size" else "macs"
        return self.settings.prune.replace("$amount", f"{amount:g}").replace("$of", of)

    def _stage(
        self,
        name: str,
        passes: str,
        path: pathlib.Path,
        *,
        exact: bool = False,
        budget: Budget | None = None,
    ) -> pathlib.Path:
        """Run passes and judge what they made; the same path when nothing changed."""
        if not passes:
            return path
        settings = Settings(passes=passes, data=self.calibration, guard_speed=exact)
        step = self._run(name, path, settings, budget)
        self.notes += [f"{name}: {each}" for each in step.facts["undone"]]
        made = step.path if step.facts["changed"] else path
        if made != path or exact:
            self._keep(made, name, step.seconds)
        return made

    def _folded(self, path: pathlib.Path) -> pathlib.Path:
        """Prepared again, after a training; the same path when nothing changed."""
        if not self.settings.prepare:
            return path
        settings = Settings(passes=self.settings.prepare, data=self.calibration, guard_speed=True)
        step = self._run("fold", path, settings)
        return step.path if step.facts["changed"] else path

    def _glanced(self, name: str, passes: str, path: pathlib.Path) -> pathlib.Path:
        """As fast as the whole, if less true: with few samples and little effort."""
        if not passes:
            return path
        settings = Settings(passes=passes, data=self.few, guard_speed=False, effort="low")
        step = self._run(name, path, settings)
        return step.path if step.facts["changed"] else path

    def _run(
        self, name: str, path: pathlib.Path, settings: Settings, budget: Budget | None = None
    ) -> Step:
        """Run passes. The road's own judge decides, not the run's, unless a budget is given."""
        self.on_step(name)
        settings = dataclasses.replace(
            settings,
            budget=budget or Budget(min_sqnr=None, min_agreement=None),
            threads=self.settings.threads,
            seconds=self.settings.seconds,
            workers=self.settings.workers,
            scheduler=self.settings.scheduler,
            goal="size" if self.settings.target.of == "size" else "latency",
            external_data=self.settings.external_data,
        )

        def make(out: pathlib.Path) -> dict[str, Any]:
            report = optimize(
                path,
                out,
                settings,
                on_step=lambda step: self.on_step(f"{name}: {step}"),
            )
            undone = [f"{each.name} was left out, because {each.reason}" for each in report.undone]
            return {"changed": report.changed, "undone": undone}

        what = (
            f"{settings.passes} {settings.guard_speed} {settings.effort} "
            f"{_budget_text(settings.budget)}"
        )
        return self.journal.step(what, path, make)

    def _keep(self, path: pathlib.Path, name: str, seconds: float) -> None:
        """Measure a stage's model and note it down."""
        self.stages.append(self.judge.look(path, name, seconds, self._speed(path)))
        self._files.append(path)

    def _speed(self, path: pathlib.Path) -> Speed:
        """How fast it is, measured once: measured again, it could lead elsewhere."""

        def measure() -> list[float]:
            found = self.judge.speed(path)
            return [*dataclasses.astuple(found.ratio), found.seconds]

        *ratio, seconds = self.journal.decide(f"speed of {self.journal.name(path)}", measure)
        return Speed(Ratio(*ratio), seconds)

    def _choose(self) -> None:
        """The best model within the budget: one that meets the target, else the nearest to it."""
        best: int | None = None
        for index, stage in enumerate(self.stages):
            worse = stage.bytes > self.judge.bytes or stage.speed.is_slower
            if stage.objection or worse:
                continue
            if best is None or self._rank(stage) < self._rank(self.stages[best]):
                best = index
        if best is None:
            self.notes.append("No stage stayed within the budget: the output is the input.")
            return
        self.stages[best].chosen = True
        self.chosen_path = self._files[best]
        if not self.stages[best].reached:
            self.notes.append(
                f"The target of {self.settings.target.share:.0%} of the "
                f"{self.settings.target.of} was not reached within the budget: "
                f"{self.stages[best].left:.0%} is left."
            )

    def _rank(self, stage: StageReport) -> tuple[bool, float, float]:
        """Lower is better: the target first, then the truest of those that meet it."""
        if not stage.reached:
            return True, stage.left, 0.0
        return False, -_truth(stage.fidelity), -stage.fidelity.sqnr_db


def _truth(found: Fidelity) -> float:
    """One number for how true a model is."""
    if found.score is not None:
        return found.score.after
    if found.agreement is not None:
        return found.agreement.fraction
    return found.sqnr_db


def _noise(found: Fidelity) -> float:
    """Noise as a share of the signal."""
    return float(10 ** (-found.sqnr_db / 10))


def _budget_text(budget: Budget) -> str:
    """A budget in words that are the same in each process."""
    function = budget.evaluate
    name = "" if function is None else getattr(function, "__qualname__", type(function).__name__)
    return f"{dataclasses.replace(budget, evaluate=None)!r} {name}"


def _mark(path: pathlib.Path, data: pathlib.Path, settings: CompressSettings) -> str:
    """What a compression was started with, as far as it bears on the result."""
    files = sorted(data.glob("*.npz")) if data.is_dir() else [data]
    names = [file.name for file in files]
    plain = dataclasses.replace(settings, budget=Budget(), workers=1, scheduler=None)
    facts = plain, _budget_text(settings.budget), names, environment(settings.threads)
    return fingerprint(path, bytes_on_disk(path), *facts, *files)
