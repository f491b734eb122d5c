"""The road itself: load, run the passes, hold the result against the original, save, report."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.data import FeedRequest, FeedSource
from onnxopt.errors import (
    ModelError,
    OptionError,
    PassFailure,
    RuntimeCrashError,
    RuntimeRefusalError,
)
from onnxopt.instruments.counts import Counts, Timing, count_nodes, count_ops
from onnxopt.instruments.fusions import census
from onnxopt.instruments.guard import SpeedGuard, size_objection
from onnxopt.instruments.reproducer import CountRuns, write_reproducer
from onnxopt.instruments.verify import (
    KeepInterface,
    Objection,
    PassRejectedError,
    Referee,
    VerifyEach,
)
from onnxopt.model import (
    ExternalData,
    Interface,
    StagedModel,
    bytes_on_disk,
    from_proto,
    light_proto,
    load,
    restore_interface,
    save,
    stage,
)
from onnxopt.pass_contract import Instrument, Pass, PassReport
from onnxopt.pass_manager import PassManager, format_pipeline, parse_pipeline
from onnxopt.report.run import ModelFacts, RunReport, Undone
from onnxopt.runtime.compare import Difference, Tolerance
from onnxopt.runtime.probe import environment
from onnxopt.runtime.statistics import Ratio, latency
from onnxopt.runtime.trial import Trial
from onnxopt.runtime.worker import Worker, shared_worker

__all__ = ["Settings", "optimize"]

#: So many samples are compared.
_MOST_FEEDS = 8
#: Models up to this size are raced with both in memory.
_RACE_LIMIT_BYTES = 512 * 2**20


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to optimize. Everything has a default that is safe.

    Attributes:
        passes: Pipeline text, or the name of a pipeline.
        skip: Passes to leave out of it.
        verify: Compare outputs at the end, after each pass that changed something, or never.
        guard_speed: Time the result against the original and undo what makes it slower.
        data: Folder of ``.npz`` feeds or one ``.npz`` of stacked samples; made up when None.
        values: Whole inputs by name, where inputs are made up.
        shapes: Input shapes by name, where inputs are made up.
        threads: Threads for one operator when models run.
        seconds: Time for one comparison of speed.
        tolerance: How far outputs may be apart.
        external_data: Weights beside the model: as the input had it, always, or never.
        in_place: Allow the output to replace the input.
        dry_run: Do everything but write the output.
        reproducer: Folder for reproducers of failing passes; beside the output when None.
    """

    passes: str = "exact"
    skip: tuple[str, ...] = ()
    verify: Literal["end", "each", "off"] = "end"
    guard_speed: bool = True
    data: str | os.PathLike[str] | None = None
    values: Mapping[str, np.ndarray[Any, Any]] = dataclasses.field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    threads: int = 1
    seconds: float = 1.0
    tolerance: Tolerance = dataclasses.field(default_factory=Tolerance)
    external_data: ExternalData = "auto"
    in_place: bool = False
    dry_run: bool = False
    reproducer: str | os.PathLike[str] | None = None


def optimize(
    source: str | os.PathLike[str] | ir.Model | onnx.ModelProto,
    target: str | os.PathLike[str] | None = None,
    settings: Settings | None = None,
    *,
    on_step: Callable[[str], None] = lambda step: None,
    **options: Any,
) -> RunReport:
    """Optimize a model.

    Args:
        source: Path of the model, or a model in memory. A model in memory is changed in place when
            no target is given, and only if the result passes every check.
        target: Where to write the result.
        settings: How to do it.
        on_step: Told what is being done, for a progress display.
        options: Single settings by name, on top of ``settings``.

    Returns:
        What was done, measured and undone.

    Raises:
        OnnxoptError: When the input is no good, a setting is wrong, the runtime refuses the
            original, or the output cannot be written. Nothing is written then.
    """
    try:
        settings = dataclasses.replace(settings or Settings(), **options)
    except TypeError as error:
        raise OptionError(f"unknown setting: {error}") from error
    with _on_disk(source) as path:
        run = _Run(path, None if target is None else pathlib.Path(target), settings, on_step)
        report = run.run()
        if isinstance(source, ir.Model) and target is None and report.changed:
            run.replay(source)
    return report


@contextlib.contextmanager
def _on_disk(source: str | os.PathLike[str] | ir.Model | onnx.ModelProto) -> Iterator[pathlib.Path]:
    """The path of the original; a model in memory is written to a temporary folder."""
    if isinstance(source, str | os.PathLike):
        yield pathlib.Path(source)
        return
    model = from_proto(source) if isinstance(source, onnx.ModelProto) else source
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
        path = pathlib.Path(folder) / "model.onnx"
        save(model, path)
        yield path


class _Run:
    """One optimization; the methods follow the order of the work."""

    def __init__(
        self,
        source: pathlib.Path,
        target: pathlib.Path | None,
        settings: Settings,
        on_step: Callable[[str], None],
    ) -> None:
        self.source, self.target, self.settings, self.on_step = source, target, settings, on_step
        self.worker: Worker = shared_worker("trials")
        self.banned: dict[str, Undone] = {}
        self.notes: list[str] = []

    def run(self) -> RunReport:
        start = time.perf_counter()
        self._check_target()
        self.passes = self._parse()
        self.on_step("loading")
        original = load(self.source)
        self.interface = Interface.of(original)
        before = ModelFacts(
            bytes_on_disk(self.source), count_nodes(original), dict(count_ops(original))
        )
        with (
            tempfile.TemporaryDirectory(prefix="onnxopt-") as folder,
            concurrent.futures.ThreadPoolExecutor(1) as executor,
        ):
            self.folder = pathlib.Path(folder)
            # Loading a large graph takes the runtime about as long as the passes take.
            self._referee = executor.submit(self._referee_maker(original, before.bytes))
            try:
                candidate = self._find_good_candidate(original, before)
            except BaseException:
                self.worker.interrupt()  # nobody waits for the original any more
                raise
            self._close()
            try:
                report = self._report(before, candidate)
                if self.target is not None and not self.settings.dry_run:
                    self.on_step("saving")
                    candidate.commit(self.source, self.target)
            finally:
                candidate.discard()
        report.seconds = time.perf_counter() - start
        return report

    def replay(self, model: ir.Model) -> None:
        """Do to a model in memory what was found to be good."""
        interface = Interface.of(model)
        PassManager(self._fresh_passes()).run(model)
        restore_interface(model, interface)

    def _check_target(self) -> None:
        if self.target is None or self.settings.dry_run or not self.target.exists():
            return
        if (
            self.source.exists()
            and self.target.samefile(self.source)
            and not self.settings.in_place
        ):
            raise ModelError(
                f"{self.target} is the input itself; name another output, or say --in-place"
            )

    def _parse(self) -> list[Pass]:
        passes = parse_pipeline(self.settings.passes)
        names = {pass_.name for pass_ in passes}
        for name in self.settings.skip:
            if name not in names:
                raise OptionError(f"cannot skip '{name}': the pipeline has no such pass")
        return [pass_ for pass_ in passes if pass_.name not in self.settings.skip]

    def _fresh_passes(self) -> list[Pass]:
        kept = [pass_ for pass_ in self.passes if pass_.name not in self.banned]
        return parse_pipeline(format_pipeline(kept))

    # The original

    @property
    def referee(self) -> Referee | None:
        """Knows what the original does, once that has run; None when outputs are not compared."""
        return self._referee.result()

    def _referee_maker(self, model: ir.Model, size: int) -> Callable[[], Referee | None]:
        """What is to run beside the passes, having looked at the model before they change it."""
        if self.settings.verify == "off":
            self.notes.append("Outputs were not compared, since verification is off.")
            return lambda: None
        unknown = _custom_operators(model)
        if unknown:
            _check_structure(model, self.source)
            self.notes.append(
                f"Outputs were not compared: ONNX Runtime has no operator {', '.join(unknown)}."
            )
            return lambda: None
        data = None if self.settings.data is None else pathlib.Path(self.settings.data)
        request = FeedRequest(self.settings.values, self.settings.shapes)
        source = FeedSource(model, data, request)
        self._together = size <= _RACE_LIMIT_BYTES

        def make() -> Referee:
            try:
                return Referee(
                    self.worker,
                    self.source,
                    lambda try_run: source.feeds(try_run, _MOST_FEEDS),
                    threads=self.settings.threads,
                    tolerance=self.settings.tolerance,
                    seconds=0.0 if self._together else self.settings.seconds / 2,
                    keep_open=self._together,
                )
            except RuntimeRefusalError as error:
                raise ModelError(f"ONNX Runtime refuses {self.source}: {error}") from error
            except RuntimeCrashError as error:
                raise ModelError(f"{self.source} cannot be run: {error}") from error

        return make

    def _close(self) -> None:
        """Let go of the original's session, if it got that far."""
        if self._referee.done() and self._referee.exception() is None:
            referee = self._referee.result()
            if referee is not None:
                referee.close()

    # The candidate

    def _find_good_candidate(self, original: ir.Model | None, before: ModelFacts) -> _Candidate:
        """Run the pipeline; while the result is no good, find the guilty pass and leave it out."""
        while True:
            self.on_step("optimizing")
            model = original if original is not None else load(self.source)
            original = None  # it is changed from here on
            try:
                candidate = self._build(model, self._fresh_passes())
            except PassRejectedError as error:
                self._ban(error.pass_name, error.objection.message)
                continue
            self.on_step("verifying")
            try:
                objection = self._judge(candidate, before)
            except BaseException:
                candidate.discard()
                raise
            if objection is None:
                return candidate
            candidate.discard()
            self.on_step("looking for the pass at fault")
            guilty = self._bisect(objection, before)
            if guilty is None:
                self.notes.append(f"One check failed once and not again: {objection.message}.")
                continue_without = [
                    report.name for report in candidate.reports if report.outcome.modified
                ]
                if not continue_without:
                    return candidate
                guilty = continue_without[-1]
            self._ban(guilty, objection.message)

    def _build(self, model: ir.Model, passes: list[Pass]) -> _Candidate:
        runs = CountRuns()
        instruments: list[Instrument] = [
            Timing(),
            Counts(model),
            KeepInterface(self.interface),
            runs,
        ]
        if self.settings.verify == "each":
            instruments.append(VerifyEach(self.referee, self.folder))
        try:
            reports = PassManager(passes, instruments).run(model)
        except PassFailure as error:
            raise PassRejectedError(
                error.pass_name,
                Objection("crash", self._reproduce(error, passes, runs.runs)),
            ) from error
        restore_interface(model, self.interface)
        changed = any(report.outcome.changed_model for report in reports)
        staged = stage(model, self._stage_for(), self.settings.external_data)
        facts = ModelFacts(staged.bytes, count_nodes(model), dict(count_ops(model)))
        return _Candidate(staged, reports, facts, changed)

    def _stage_for(self) -> pathlib.Path:
        """Candidates are written beside the target, so that moving them there is one step."""
        if self.target is None or self.settings.dry_run:
            return self.folder / "result.onnx"
        return self.target

    def _judge(self, candidate: _Candidate, before: ModelFacts) -> Objection | None:
        if not candidate.changed:
            return None
        objection = size_objection(before.bytes, candidate.facts.bytes)
        if objection is not None or self.referee is None:
            return objection
        objection, candidate.trial, candidate.differences = self.referee.judge(
            candidate.staged.path
        )
        trial = candidate.trial
        if objection is None and trial is not None and self.settings.guard_speed:
            feeds = self.referee.feeds
            guard = SpeedGuard(
                self.worker,
                self.referee.reference,
                feeds[-1] if self._together else feeds[0],
                threads=self.settings.threads,
                seconds=self.settings.seconds,
                together=self._together,
            )
            objection, candidate.speed = guard.judge(trial)
            candidate.samples = guard.samples
        if trial is not None:
            self.referee.let_go(trial)
        return objection

    def _bisect(self, objection: Objection, before: ModelFacts) -> str | None:
        """The first pass of the pipeline with which the same objection comes up."""
        passes = self._fresh_passes()
        low, high = 0, len(passes)  # with `low` passes all is well, with `high` it is not
        if not self._objects(passes[:high], objection, before):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            if self._objects(passes[:middle], objection, before):
                high = middle
            else:
                low = middle
        return passes[high - 1].name

    def _objects(self, passes: list[Pass], objection: Objection, before: ModelFacts) -> bool:
        fresh = parse_pipeline(format_pipeline(passes))
        candidate = self._build(load(self.source), fresh)
        try:
            found = self._judge(candidate, before)
        finally:
            candidate.discard()
        return found is not None and found.kind == objection.kind

    def _ban(self, name: str, reason: str) -> None:
        reason, _, command = reason.partition("\n")
        self.banned[name] = Undone(name, reason, command)

    def _reproduce(self, error: PassFailure, passes: list[Pass], runs: int) -> str:
        """Write a reproducer where there is a place for it; the failure, and its command."""
        folder = self.settings.reproducer
        if folder is None and self.target is not None and not self.settings.dry_run:
            folder = self.target.with_name(self.target.name + ".failure")
        if folder is None:
            return str(error)
        command = write_reproducer(
            pathlib.Path(folder),
            lambda: load(self.source),
            parse_pipeline(format_pipeline(passes)),
            runs,
            error.pass_name,
            str(error),
        )
        return f"{error}\n{command}"

    # The report

    def _report(self, before: ModelFacts, candidate: _Candidate) -> RunReport:
        reference = None if self.referee is None else self.referee.reference
        trial = candidate.trial
        samples = candidate.samples
        before = _measured(before, reference, samples[0] if samples else [])
        after = _measured(candidate.facts, trial, samples[1] if samples else [])
        if not candidate.changed:
            self.notes.append("No pass found anything to improve: the output is the input.")
            after = before
        return RunReport(
            source=str(self.source),
            target=None if self.target is None else str(self.target),
            pipeline=format_pipeline(self.passes),
            before=before,
            after=after,
            changed=candidate.changed,
            verified=trial is not None,
            feeds=len(self.referee.feeds) if self.referee is not None else 0,
            differences=candidate.differences,
            speed=candidate.speed,
            passes=candidate.reports,
            undone=list(self.banned.values()),
            notes=self.notes,
            environment=environment(self.settings.threads),
        )


@dataclasses.dataclass
class _Candidate:
    """A result that is written but not yet accepted."""

    staged: StagedModel
    reports: list[PassReport]
    facts: ModelFacts
    changed: bool
    trial: Trial | None = None
    differences: list[Difference] = dataclasses.field(default_factory=list)
    speed: Ratio | None = None
    samples: list[list[float]] = dataclasses.field(default_factory=list)

    def commit(self, source: pathlib.Path, target: pathlib.Path) -> None:
        """Put the result in its place; an unchanged single-file model byte by byte."""
        files = list(self.staged.path.parent.iterdir())
        if not self.changed and len(files) == 1 and bytes_on_disk(source) == source.stat().st_size:
            shutil.copyfile(source, self.staged.path)
        self.staged.commit()

    def discard(self) -> None:
        """Remove what was written."""
        self.staged.discard()


def _measured(facts: ModelFacts, trial: Trial | None, samples: Sequence[float]) -> ModelFacts:
    if trial is None:
        return facts
    return dataclasses.replace(
        facts,
        load_seconds=trial.info.load_seconds,
        kernels=dict(census(trial.kernels)),
        latency=latency(samples) if samples else None,
    )


#: Domains whose operators ONNX Runtime's CPU build has kernels for.
_RUNTIME_DOMAINS = frozenset(
    ["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"]
)


def _custom_operators(model: ir.Model) -> list[str]:
    """Operators that need a library of their own to run, as ``domain.operator``."""
    local = {(identifier[0], identifier[1]) for identifier in model.functions}
    found = {
        f"{node.domain}.{node.op_type}"
        for graph in model.graphs()
        for node in graph
        if node.domain not in _RUNTIME_DOMAINS and (node.domain, node.op_type) not in local
    }
    return sorted(found)


def _check_structure(model: ir.Model, source: pathlib.Path) -> None:
    """Check what can be checked without running: names, order, types of attributes."""
    try:
        onnx.checker.check_model(light_proto(model))
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{source} is not a valid model: {str(error).splitlines()[0]}") from error
