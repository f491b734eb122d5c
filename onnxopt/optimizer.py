"""The road itself: load, run the passes, hold the result against the original, save, report."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from onnxopt.calibration.piecework import get_ready
from onnxopt.candidate import Candidate
from onnxopt.errors import ModelError, OptionError, PassFailure
from onnxopt.fates import fates
from onnxopt.halving import first_that
from onnxopt.instruments.counts import Counts, Timing
from onnxopt.instruments.fusions import census
from onnxopt.instruments.reproducer import CountRuns, write_reproducer
from onnxopt.instruments.telling import Telling
from onnxopt.instruments.verify import KeepInterface, Objection, PassRejectedError, VerifyEach
from onnxopt.model import Interface, from_proto, load, restore_interface, save
from onnxopt.original import Original
from onnxopt.parallel import Crew, open_crew
from onnxopt.pass_contract import Instrument, Kind, Pass
from onnxopt.pass_manager import PassManager, format_pipeline, parse_pipeline, split_storage
from onnxopt.report.run import ModelFacts, RunReport, Undone
from onnxopt.runtime.probe import environment
from onnxopt.runtime.statistics import latency
from onnxopt.runtime.trial import Trial
from onnxopt.settings import Settings
from onnxopt.workbench import Workbench

__all__ = ["Settings", "optimize"]


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
    with (
        open_crew(settings.workers, settings.scheduler) as crew,
        _on_disk(source) as path,
        _no_garbage_collection(),
    ):
        if settings.data is not None:  # else there is nothing to observe
            get_ready(crew)
        written_to = None if target is None else pathlib.Path(target)
        run = _Run(path, written_to, settings, crew, on_step)
        report = run.run()
        if isinstance(source, ir.Model) and target is None and report.changed:
            run.replay(source)
    return report


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Passes make many objects and few cycles; looking for those again and again takes a fifth."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
    """One optimization."""

    def __init__(
        self,
        source: pathlib.Path,
        target: pathlib.Path | None,
        settings: Settings,
        crew: Crew,
        on_step: Callable[[str], None],
    ) -> None:
        self.source, self.settings, self.on_step = source, settings, on_step
        self.target = None if settings.dry_run else target
        self.undone: dict[str, Undone] = {}
        self.notes: list[str] = []
        if self.target is not None:
            _check_target(source, self.target, settings.in_place)
        self.passes = _passes(settings)
        self._crew = crew
        self._workbench: Workbench | None = None

    def run(self) -> RunReport:
        """Load, optimize, save, report."""
        start = time.perf_counter()
        self.on_step("loading")
        self.original = Original(self.source, self.settings, self.on_step)
        with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
            self.folder = pathlib.Path(folder)
            try:
                candidate = self._good_candidate()
            except BaseException:
                self.original.abandon()
                raise
            finally:
                self.original.close()
            try:
                report = self._report(candidate)
                if self.target is not None:
                    self.on_step("saving")
                    candidate.commit(self.source)
            finally:
                candidate.discard()
        report.seconds = time.perf_counter() - start
        return report

    def replay(self, model: ir.Model) -> None:
        """Do to a model in memory what was found to be good."""
        interface = Interface.of(model)
        PassManager(self._kept_passes(), workbench=self._workbench).run(model)
        restore_interface(model, interface)

    def _good_candidate(self) -> Candidate:
        """The result of the pipeline, less the passes at fault.

        The passes before the first lossy one are held to float tolerance on their own first: in a
        lossy result nobody could tell their mistakes from what the budget allows.
        """
        exact = next(
            (index for index, pass_ in enumerate(self.passes) if pass_.kind is Kind.LOSSY), None
        )
        if exact:
            self._good_candidate_of(exact).discard()
        while True:
            candidate = self._good_candidate_of(len(self.passes))
            if not self._leave_out_what_was_in_vain(candidate):
                return candidate
            candidate.discard()

    def _leave_out_what_was_in_vain(self, candidate: Candidate) -> bool:
        """Leave out passes that prepared for another which then changed nothing."""
        effective = {each.name for each in candidate.reports if each.outcome.changed_model}
        found = [
            pass_
            for pass_ in self.passes
            if pass_.name in effective
            and pass_.prepares_for
            and pass_.prepares_for not in effective
        ]
        for pass_ in found:
            reason = f"it prepares for '{pass_.prepares_for}', which changed nothing"
            self.undone[pass_.name] = Undone(pass_.name, reason)
        return bool(found)

    def _good_candidate_of(self, count: int) -> Candidate:
        """Run the first passes; while the result is no good, leave out the pass at fault."""
        while True:
            try:
                candidate = self._build(self._kept_passes(count))
            except PassRejectedError as error:
                self._leave_out(error.pass_name, error.objection)
                continue
            self.on_step("verifying")
            objection = self._judge(candidate)
            if objection is None:
                return candidate
            candidate.discard()
            self.on_step("looking for the pass at fault")
            guilty = self._guilty_pass(objection, candidate, count)
            if not self._give_other_options(guilty, objection):
                self._leave_out(self._preparation_for(guilty, candidate) or guilty, objection)

    def _preparation_for(self, guilty: str, candidate: Candidate) -> str | None:
        """The pass that prepared for the one at fault, and may be what spoiled its result."""
        effective = {each.name for each in candidate.reports if each.outcome.changed_model}
        names = (pass_.name for pass_ in self.passes if pass_.prepares_for == guilty)
        return next((name for name in names if name in effective), None)

    def _build(self, passes: list[Pass]) -> Candidate:
        """Run passes on the original and write the result.

        Raises:
            PassRejectedError: When a pass fails, or an instrument objects to what it did.
        """
        model = self.original.model()
        runs = CountRuns()
        instruments: list[Instrument] = [
            Timing(),
            Counts(model),
            KeepInterface(self.original.interface),
            runs,
            Telling(self.on_step),
        ]
        if self.settings.verify == "each":
            instruments.append(VerifyEach(self.original.referee, self.folder))
        try:
            reports = PassManager(passes, instruments, workbench=self._bench(passes)).run(model)
        except PassFailure as error:
            message = self._reproduce(error, passes, runs.runs)
            raise PassRejectedError(error.pass_name, Objection("crash", message)) from error
        target = self.target or self.folder / "result.onnx"
        return Candidate.write(
            model, reports, self.original.interface, target, self.settings.external_data
        )

    def _bench(self, passes: Sequence[Pass]) -> Workbench | None:
        """What the passes work with; the same through all runs of the pipeline."""
        if not any(pass_.kind is Kind.LOSSY for pass_ in passes):
            return None
        if self._workbench is None:
            self._workbench = self.original.workbench(self._crew)
        return self._workbench

    def _judge(self, candidate: Candidate, *, size: bool = True) -> Objection | None:
        try:
            return self.original.judge(candidate, size=size)
        except BaseException:
            candidate.discard()
            raise

    def _guilty_pass(self, objection: Objection, candidate: Candidate, count: int) -> str:
        """The first pass of the pipeline with which the same objection comes up.

        Storage passes at the end stay there while passes before them are left out: without them, a
        model that was stored compactly would be larger whatever is done to it. An objection that
        does not come up again is laid to the last pass that changed the model, so that the search
        ends.
        """
        passes, storage = split_storage(self._kept_passes(count))
        if not self._objects([*passes, *storage], objection):
            return next(
                report.name
                for report in reversed(candidate.reports)
                if report.outcome.changed_model
            )
        if storage and (not passes or self._objects(storage, objection)):
            passes, storage = storage, []
        first = first_that(
            lambda count: self._objects([*passes[:count], *storage], objection),
            0,
            len(passes),
            lambda text: self.on_step(f"looking for the pass at fault, try {text}"),
        )
        return passes[first - 1].name

    def _objects(self, passes: list[Pass], objection: Objection) -> bool:
        try:
            candidate = self._build(parse_pipeline(format_pipeline(passes)))
        except PassRejectedError as error:
            return error.objection.kind == objection.kind
        # Half a pipeline may give a larger file; that must not hide what is looked for.
        found = self._judge(candidate, size=objection.kind == "size")
        candidate.discard()
        return found is not None and found.kind == objection.kind

    def _kept_passes(self, count: int | None = None) -> list[Pass]:
        """Fresh instances of the first passes, or all, that are not left out.

        Storage passes that the pipeline ends with are always among them.
        """
        passes, storage = split_storage(self.passes)
        chosen = [*passes[:count], *storage]
        kept = [pass_ for pass_ in chosen if pass_.name not in self.undone]
        return parse_pipeline(format_pipeline(kept))

    def _give_other_options(self, name: str, objection: Objection) -> bool:
        """Give passes of this name options that may do without the fault; whether there are any."""
        match objection.kind:
            case "size":
                why, others = "The file grew", [each.thrifty() for each in self.passes]
            case "speed":
                why, others = "The result was slower", [each.careful() for each in self.passes]
            case _:
                return False
        found = {
            index: other
            for index, other in enumerate(others)
            if other is not None and other.name == name
        }
        for index, other in found.items():
            self.passes[index] = other
            self.notes.append(f"{why}, so {name} ran as {other.text}.")
        return bool(found)

    def _leave_out(self, name: str, objection: Objection) -> None:
        reason, _, command = objection.message.partition("\n")
        self.undone[name] = Undone(name, reason, command)

    def _reproduce(self, error: PassFailure, passes: list[Pass], runs: int) -> str:
        """Write a reproducer where there is a place for it; the failure, and its command."""
        folder = self.settings.reproducer
        if folder is None and self.target is not None:
            folder = self.target.with_name(self.target.name + ".failure")
        if folder is None:
            return str(error)
        again = parse_pipeline(format_pipeline(passes))
        command = write_reproducer(
            pathlib.Path(folder),
            lambda: load(self.source),
            again,
            lambda instruments: PassManager(again, instruments, workbench=self._bench(again)),
            runs,
            error.pass_name,
            str(error),
            self.settings.data,
        )
        return f"{error}\n{command}"

    def _report(self, candidate: Candidate) -> RunReport:
        report = self._what_was_judged(candidate)
        report.treatments = fates(self.original.nodes, report.all_findings.treatments)
        if self.settings.details:
            self.on_step("measuring memory and layers")
            self.original.add_details(report, candidate)
        return report

    def _what_was_judged(self, candidate: Candidate) -> RunReport:
        referee, trial = self.original.referee, candidate.trial
        reference = None if referee is None else referee.reference
        times = candidate.samples or [[], []]
        before = _measured(self.original.facts, reference, times[0])
        after = _measured(candidate.facts, trial, times[1])
        notes = [*self.original.notes, *dict.fromkeys(self.notes)]
        if not candidate.changed:
            notes.append("No pass found anything to improve: the output is the input.")
            after = before
        return RunReport(
            source=str(self.source),
            target=None if self.target is None else str(self.target),
            pipeline=format_pipeline(self.passes),
            before=before,
            after=after,
            changed=candidate.changed,
            verified=trial is not None,
            feeds=0 if referee is None else len(referee.feeds),
            differences=candidate.differences,
            fidelity=candidate.fidelity,
            speed=candidate.speed,
            passes=candidate.reports,
            undone=list(self.undone.values()),
            notes=notes,
            environment=environment(self.settings.threads),
        )


def _check_target(source: pathlib.Path, target: pathlib.Path, in_place: bool) -> None:
    if target.exists() and source.exists() and target.samefile(source) and not in_place:
        raise ModelError(f"{target} is the input itself; name another output, or say --in-place")


def _passes(settings: Settings) -> list[Pass]:
    passes = parse_pipeline(settings.pipeline)
    names = {pass_.name for pass_ in passes}
    for name in settings.skip:
        if name not in names:
            raise OptionError(f"cannot skip '{name}': the pipeline has no such pass")
    return [pass_ for pass_ in passes if pass_.name not in settings.skip]


def _measured(facts: ModelFacts, trial: Trial | None, samples: Sequence[float]) -> ModelFacts:
    if trial is None:
        return facts
    return dataclasses.replace(
        facts,
        load_seconds=trial.info.load_seconds,
        kernels=dict(census(trial.kernels)),
        latency=latency(samples) if samples else None,
    )
