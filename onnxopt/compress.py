"""The long road: fold, prune, distill, quantize, distill again, encode; each stage judged.

    onnxopt compress model.onnx smaller.onnx --data train/ --target-latency 0.5

Each stage makes a file of the last one's. After each the file is measured against the original:
its size, its speed (paired), and its answers on samples that no stage learned from. What comes out
is the model nearest to the target among those that stay inside the accuracy budget; the road is
walked again with less pruning when the budget is exceeded.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from onnxopt.accuracy import Budget, Fidelity, Score, fidelity
from onnxopt.analysis.inspection import inspect_model
from onnxopt.data import Feed
from onnxopt.errors import ModelError, OnnxoptError, OptionError
from onnxopt.model import ExternalData, bytes_on_disk, copy, load, save
from onnxopt.optimizer import Settings, optimize
from onnxopt.runtime.probe import environment
from onnxopt.runtime.statistics import Ratio, latency, ratio
from onnxopt.runtime.trial import race
from onnxopt.runtime.worker import Worker
from onnxopt.training.data import TrainingData, read_training_data
from onnxopt.training.distillation import DistillReport, DistillSettings, distill

__all__ = ["CompressReport", "CompressSettings", "StageReport", "Target", "compress"]

#: Calibrate with at most so many samples.
_MOST_CALIBRATION = 512
#: Judge with at most so many.
_MOST_JUDGED = 1_000
#: No more than this is pruned at first; beyond it little is left to train.
_MOST_PRUNED = 0.85
_LEAST_PRUNED = 0.1
#: Amounts of pruning are tried so often to meet a target before anything is trained.
_AIMS = 3
#: A target counts as met this close to it.
_NEAR = 1.05
#: After a road that cost too much, the next one prunes this much less.
_LESS = 0.6


@dataclasses.dataclass(frozen=True)
class Target:
    """What is to be reached, relative to the original.

    Attributes:
        of: ``latency``: time of one run. ``macs``: multiply-accumulates of one run. ``size``: bytes
            of the file.
        share: The share of the original's that may be left, above 0 and at most 1.
    """

    of: Literal["latency", "macs", "size"] = "latency"
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise OptionError(
                f"a target is a share of the original, above 0 and at most 1, not {self.share:g}"
            )


@dataclasses.dataclass(frozen=True)
class CompressSettings:
    """Which road to take.

    Attributes:
        target: What is to be reached.
        prepare: Pipeline before anything else.
        prune: Pipeline that prunes. ``$amount`` in it stands for the share that is found to meet
            the target, ``$of`` for ``parameters`` where that is a size, else ``macs``. Empty for
            none.
        quantize: Pipeline that quantizes; empty for none.
        encode: Pipeline that stores weights in fewer bytes; empty for none.
        amount: Share to prune, for ``$amount``; found by measuring when None.
        distill: How to train; its ``labels`` are the name of the array of labels.
        retrain_epochs: Epochs of the training after quantization, which happens when quantization
            exceeds the budget; 0 for never.
        budget: What the result may cost.
        attempts: How often the road may be walked, with less pruning each time.
        threads: Threads for running, timing and training.
        seconds: Time for one comparison of speed.
        external_data: Weights beside the result: as the original has them, always, or never.
    """

    target: Target = dataclasses.field(default_factory=Target)
    prepare: str = "exact"
    prune: str = "exact,prune-channels{amount=$amount,of=$of}"
    quantize: str = "exact,quantize"
    encode: str = ""
    amount: float | None = None
    distill: DistillSettings = dataclasses.field(default_factory=DistillSettings)
    retrain_epochs: float = 2.0
    budget: Budget = dataclasses.field(default_factory=Budget)
    attempts: int = 2
    threads: int = 1
    seconds: float = 1.0
    external_data: ExternalData = "auto"


@dataclasses.dataclass
class StageReport:
    """One station of the road.

    Attributes:
        name: What was done.
        seconds: How long it took.
        bytes: Size of the model after it.
        speed: How many times faster than the original.
        latency_seconds: Median time of one run.
        fidelity: How true it is to the original on samples that nothing learned from.
        objection: What is over the budget; empty when nothing is.
        left: What is left of the quantity that the target is about, as a share of the original's.
        reached: Whether the target is met.
        changed: Whether the stage changed the model.
        chosen: Whether this is the result.
        distillation: What the training did, where it was one.
    """

    name: str
    seconds: float
    bytes: int
    speed: Ratio
    latency_seconds: float
    fidelity: Fidelity
    objection: str
    left: float
    reached: bool
    changed: bool = True
    chosen: bool = False
    distillation: DistillReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            **{
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(self)
                if field.name not in ("speed", "fidelity", "distillation")
            },
            "speed": dataclasses.asdict(self.speed),
            "fidelity": self.fidelity.to_dict(),
            "distillation": None if self.distillation is None else self.distillation.to_dict(),
        }


@dataclasses.dataclass
class CompressReport:
    """What a compression did.

    Attributes:
        source: The original.
        target_path: Where the result was written; None when it was not.
        target: What was to be reached.
        bytes_before: Size of the original.
        latency_before: Median time of one run of the original, in seconds.
        stages: Every station, in order.
        samples: Samples in all.
        judged: Samples that models were judged with.
        notes: Sentences for the user.
        seconds: Time of the whole.
        environment: Machine and versions.
    """

    source: str
    target_path: str | None
    target: Target
    bytes_before: int
    latency_before: float
    stages: list[StageReport]
    samples: int
    judged: int
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def result(self) -> StageReport | None:
        """The station whose model is the result; None when that is the original."""
        return next((stage for stage in self.stages if stage.chosen), None)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "schema_version": 1,
            **{
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(self)
                if field.name not in ("target", "stages")
            },
            "target": dataclasses.asdict(self.target),
            "stages": [stage.to_dict() for stage in self.stages],
        }


def compress(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    data: str | os.PathLike[str],
    settings: CompressSettings | None = None,
    *,
    on_step: Callable[[str], None] = lambda step: None,
) -> CompressReport:
    """Make a model smaller and faster, training it to answer as it did.

    Args:
        source: The model.
        target: Where to write the result.
        data: A folder of ``.npz`` feeds or one ``.npz`` of stacked samples. One in ten is held out
            of all stages and judges them.
        settings: Which road to take.
        on_step: Told what is being done.

    Raises:
        OnnxoptError: When the model, the data and the settings do not fit together. Nothing is
            written then.
    """
    start = time.perf_counter()
    path, out = pathlib.Path(source), pathlib.Path(target)
    if out.exists() and path.exists() and out.samefile(path):
        raise ModelError(f"{out} is the input itself; name another output")
    settings = settings or CompressSettings()
    with (
        tempfile.TemporaryDirectory(prefix="onnxopt-compress-") as folder,
        _Judge(path, pathlib.Path(data), settings, on_step) as judge,
    ):
        road = _Road(path, pathlib.Path(folder), settings, judge, on_step)
        report = road.walk()
        on_step("writing")
        if road.chosen_path == path:
            copy(path, out)
        else:
            save(load(road.chosen_path), out, settings.external_data)
    report.target_path = str(out)
    report.seconds = time.perf_counter() - start
    return report


class _Judge:
    """The original, and what candidates are held against.

    Attributes:
        data: All samples.
        held_out: Feeds that nothing learns from.
        calibration: Numbers of the samples to calibrate on.
    """

    def __init__(
        self,
        path: pathlib.Path,
        data: pathlib.Path,
        settings: CompressSettings,
        on_step: Callable[[str], None],
    ) -> None:
        on_step("reading samples")
        self.path, self._settings = path, settings
        model = load(path)
        self.data: TrainingData = read_training_data(model, data, settings.distill.labels)
        training, held_out = self.data.split()
        step = max(1, len(held_out) // _MOST_JUDGED)
        self.held_out: list[Feed] = [self.data.feed(number) for number in held_out[::step]]
        step = max(1, len(training) // _MOST_CALIBRATION)
        self.calibration = training[::step][:_MOST_CALIBRATION]
        self._worker = Worker()
        on_step("running the original")
        try:
            self._names, self._wanted = self._outputs(path)
        except OnnxoptError as error:
            self._worker.stop()
            raise ModelError(f"{path} cannot be run on the samples: {error}") from error
        evaluate = settings.budget.evaluate
        self._score = None if evaluate is None else evaluate(str(path))
        self.bytes = bytes_on_disk(path)
        self.latency = latency(self._race(path)[0]).median

    def __enter__(self) -> _Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.stop()

    def look(self, path: pathlib.Path, name: str, seconds: float) -> StageReport:
        """Measure and judge a model."""
        _, given = self._outputs(path)
        found = fidelity(self._wanted, given, self._names)
        evaluate = self._settings.budget.evaluate
        if evaluate is not None and self._score is not None:
            found = dataclasses.replace(found, score=Score(self._score, evaluate(str(path))))
        speed, median = self.speed(path)
        size = bytes_on_disk(path)
        left = self.left(path, speed)
        return StageReport(
            name,
            seconds,
            size,
            speed,
            median,
            found,
            self._settings.budget.objection(found) or "",
            left,
            left <= self._settings.target.share * _NEAR,
        )

    def speed(self, path: pathlib.Path) -> tuple[Ratio, float]:
        """How many times faster than the original, and the median time of one run."""
        samples = self._race(path)
        return ratio(samples[0], samples[1]), latency(samples[1]).median

    def left(self, path: pathlib.Path, speed: Ratio | None = None) -> float:
        """What is left of the quantity that the target is about, as a share of the original's."""
        match self._settings.target.of:
            case "size":
                return bytes_on_disk(path) / self.bytes
            case "macs":
                return _macs(path, self.held_out[0]) / _macs(self.path, self.held_out[0])
        return 1 / (speed or self.speed(path)[0]).median

    def _race(self, path: pathlib.Path) -> list[list[float]]:
        return race(
            self._worker,
            [self.path, path],
            self.held_out[0],
            threads=self._settings.threads,
            seconds=self._settings.seconds,
        )

    def _outputs(self, path: pathlib.Path) -> tuple[list[str], list[list[Any]]]:
        info = self._worker.open(path, threads=self._settings.threads)
        try:
            outputs = [self._worker.run(info.session, feed) for feed in self.held_out]
        finally:
            self._worker.close(info.session)
        return [port.name for port in info.outputs], outputs


class _Road:
    """One compression."""

    def __init__(
        self,
        source: pathlib.Path,
        folder: pathlib.Path,
        settings: CompressSettings,
        judge: _Judge,
        on_step: Callable[[str], None],
    ) -> None:
        self.source, self.folder = source, folder
        self.settings, self.judge, self.on_step = settings, judge, on_step
        self.stages: list[StageReport] = []
        self.notes: list[str] = []
        self._files: list[pathlib.Path] = []
        self._count = 0
        self._started = time.perf_counter()
        self.calibration = folder / "calibration"
        self.calibration.mkdir()
        for index, number in enumerate(judge.calibration):
            np.savez(self.calibration / f"{index:05}.npz", **judge.data.feed(number))  # type: ignore[arg-type]  # numpy's stub knows one keyword of its own
        self.chosen_path = source

    def walk(self) -> CompressReport:
        """Take the road, again with less pruning where it costs too much, and choose."""
        settings = self.settings
        start = self._pipeline("prepare", settings.prepare, self.source, exact=True)
        start = start or self.source
        self._keep(start, "prepare")
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
        first = settings.amount if settings.amount is not None else self._aim(start)
        if not first:
            return [0.0]
        return [round(first * _LESS**attempt, 3) for attempt in range(settings.attempts)]

    def _aim(self, start: pathlib.Path) -> float:
        """The amount of pruning with which the target is met, untrained."""
        share = self.settings.target.share
        before = time.perf_counter()
        self.on_step("aiming: without pruning")
        quantized = self._quantized(start)
        left = self.judge.left(quantized)
        if left <= share * _NEAR:
            return 0.0
        amount = min(_MOST_PRUNED, max(_LEAST_PRUNED, 1 - share / left))
        for _ in range(_AIMS):
            self.on_step(f"aiming: pruning {amount:.0%}")
            pruned = self._pipeline("prune", self._prune_text(amount), start)
            left = self.judge.left(self._quantized(pruned or start))
            if left <= share * _NEAR or amount >= _MOST_PRUNED:
                break
            # What is left goes about as what is not pruned does.
            amount = min(_MOST_PRUNED, 1 - (1 - amount) * share / left)
        self.notes.append(
            f"Pruning {amount:.0%} was found to leave {left:.0%} of the original's "
            f"{self.settings.target.of}, in {time.perf_counter() - before:.0f} s."
        )
        return round(amount, 3)

    def _attempt(self, start: pathlib.Path, amount: float) -> bool:
        """Walk the road once; whether its end meets target and budget."""
        settings = self.settings
        current = start
        if amount:
            name = f"prune {amount:.0%}" if "$amount" in settings.prune else "prune"
            pruned = self._pipeline(name, self._prune_text(amount), current)
            if pruned is not None:
                current = pruned
                self._keep(current, name)
                current = self._train(current, "distill", settings.distill)
                folded = self._pipeline("fold", settings.prepare, current, exact=True)
                current = folded or current
        if settings.quantize:
            quantized = self._pipeline("quantize", settings.quantize, current)
            if quantized is not None:
                self._keep(quantized, "quantize")
                if self.stages[-1].objection and settings.retrain_epochs:
                    loop = dataclasses.replace(
                        settings.distill.training, epochs=settings.retrain_epochs, steps=None
                    )
                    again = dataclasses.replace(settings.distill, training=loop, pruning=None)
                    quantized = self._train(quantized, "distill again", again)
                current = quantized
        if settings.encode:
            encoded = self._pipeline("encode", settings.encode, current)
            if encoded is not None:
                self._keep(encoded, "encode")
        end = self.stages[-1]
        return end.reached and not end.objection

    def _train(self, student: pathlib.Path, name: str, settings: DistillSettings) -> pathlib.Path:
        """Distill; the student as it was where that fails."""
        start = time.perf_counter()
        out = self._new_file()
        settings = dataclasses.replace(settings, threads=self.settings.threads)
        try:
            report = distill(
                self.source,
                student,
                out,
                self.judge.data,
                settings,
                on_step=lambda step: self.on_step(f"{name}: {step}"),
            )
        except OnnxoptError as error:
            self.notes.append(f"{name} was left out: {error}")
            return student
        self._keep(out, name, time.perf_counter() - start)
        self.stages[-1].distillation = report
        return out

    def _quantized(self, path: pathlib.Path) -> pathlib.Path:
        """Quantized where the road quantizes and that works, to see how fast it would be."""
        if not self.settings.quantize:
            return path
        return self._pipeline("quantize", self.settings.quantize, path) or path

    def _prune_text(self, amount: float) -> str:
        of = "parameters" if self.settings.target.of == "size" else "macs"
        return self.settings.prune.replace("$amount", f"{amount:g}").replace("$of", of)

    def _pipeline(
        self, name: str, passes: str, path: pathlib.Path, *, exact: bool = False
    ) -> pathlib.Path | None:
        """Run passes; None when nothing changed. The road's own judge decides, not the run's."""
        if not passes:
            return None
        self.on_step(name)
        self._started = time.perf_counter()
        out = self._new_file()
        report = optimize(
            path,
            out,
            Settings(
                passes=passes,
                data=self.calibration,
                budget=Budget(min_sqnr=None, min_agreement=None),
                guard_speed=exact,
                threads=self.settings.threads,
                seconds=self.settings.seconds,
                goal="size" if self.settings.target.of == "size" else "latency",
                external_data=self.settings.external_data,
            ),
            on_step=lambda step: self.on_step(f"{name}: {step}"),
        )
        for each in report.undone:
            self.notes.append(f"{name}: {each.name} was left out, because {each.reason}")
        return out if report.changed else None

    def _keep(self, path: pathlib.Path, name: str, seconds: float | None = None) -> None:
        """Measure a stage's model and note it down."""
        spent = time.perf_counter() - self._started if seconds is None else seconds
        self.on_step(f"{name}: judging")
        self.stages.append(self.judge.look(path, name, spent))
        self._files.append(path)

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

    def _rank(self, stage: StageReport) -> tuple[bool, float]:
        """Lower is better: the target first, then the truest of those that meet it."""
        if not stage.reached:
            return True, stage.left
        return False, -_truth(stage.fidelity)

    def _new_file(self) -> pathlib.Path:
        self._count += 1
        folder = self.folder / f"{self._count:02}"
        folder.mkdir()
        return folder / "model.onnx"


def _truth(found: Fidelity) -> float:
    """One number for how true a model is."""
    if found.score is not None:
        return found.score.after
    if found.agreement is not None:
        return found.agreement.fraction
    return found.sqnr_db


def _macs(path: pathlib.Path, feed: Feed) -> int:
    """Multiply-accumulates of one run on a feed.

    Raises:
        OptionError: When shapes are not known well enough to count them.
    """
    shapes = {name: tuple(np.shape(array)) for name, array in feed.items()}
    found = inspect_model(load(path), shapes=shapes).macs_number
    if not found:
        raise OptionError(
            f"the multiply-accumulates of {path} cannot be counted: aim at latency or size instead"
        )
    return found
