"""The original model, and what candidates are held against.

It runs in a child process while the passes work on the loaded graph: loading a large graph takes
ONNX Runtime as long as the passes take.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Callable

import onnx
import onnx_ir as ir

from onnxopt.candidate import Candidate
from onnxopt.data import Feed, FeedRequest, FeedSource
from onnxopt.details import look_closely
from onnxopt.errors import ModelError, RuntimeCrashError, RuntimeRefusalError
from onnxopt.fates import births
from onnxopt.instruments.counts import count_ops
from onnxopt.instruments.guard import SpeedGuard, size_objection
from onnxopt.instruments.verify import Objection, Referee
from onnxopt.layers import beside
from onnxopt.model import Interface, bytes_on_disk, light_proto, load
from onnxopt.parallel import Crew
from onnxopt.parallel.quiet import waiting, working
from onnxopt.report.run import ModelFacts, RunReport
from onnxopt.runtime.hardware import resolve_target
from onnxopt.runtime.trial import Trial
from onnxopt.runtime.worker import Worker, shared_worker
from onnxopt.samples import Samples, split
from onnxopt.settings import Settings
from onnxopt.traversal import all_nodes, root_graphs
from onnxopt.workbench import Workbench

__all__ = ["Original"]

#: So many samples are compared.
_MOST_FEEDS = 8
#: Lossy results are judged on so many samples at most, if they fit into so much memory.
_MOST_HELD_OUT = 512
_HELD_OUT_BYTES = 256 * 2**20
#: Models up to this size are raced with both in memory.
_RACE_LIMIT_BYTES = 512 * 2**20
#: Domains whose operators ONNX Runtime's CPU build has kernels for.
_RUNTIME_DOMAINS = frozenset(
    ["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"]
)


class Original:
    """The model as it came in.

    Args:
        path: Where it is.
        settings: How to run it.
        on_step: Told what is being done.

    Attributes:
        interface: Its interface.
        nodes: Its nodes, to be found again in a result.
        facts: Its size and nodes.
        notes: Sentences for the user.

    Raises:
        OnnxoptError: When it cannot be loaded, or the settings do not fit it.
    """

    def __init__(
        self, path: pathlib.Path, settings: Settings, on_step: Callable[[str], None]
    ) -> None:
        self.path = path
        self._on_step = on_step
        self.notes: list[str] = []
        self._settings = settings
        self._worker: Worker = shared_worker("trials")
        self._executor = concurrent.futures.ThreadPoolExecutor(2)
        if settings.verify != "off" and path.is_file():
            self._executor.submit(self._worker.start)  # takes as long as loading
        self._fresh: ir.Model | None = load(path)
        model = self._fresh
        self.interface = Interface.of(model)
        self.nodes = births(model)
        ops = count_ops(model)
        self.facts = ModelFacts(bytes_on_disk(path, model), ops.total(), dict(ops))
        self._together = self.facts.bytes <= _RACE_LIMIT_BYTES
        self._source: FeedSource | None = None
        self._referee = self._executor.submit(_while_working, self._referee_maker(model))

    def model(self) -> ir.Model:
        """The model, freshly loaded, to be changed by whoever asked for it."""
        model, self._fresh = self._fresh, None
        return model if model is not None else load(self.path)

    @property
    def referee(self) -> Referee | None:
        """Knows what the original does, once that has run; None when outputs are not compared.

        Raises:
            OnnxoptError: When the runtime refuses the original, or no inputs for it are found.
        """
        with waiting():
            return self._referee.result()

    def judge(self, candidate: Candidate, *, size: bool = True) -> Objection | None:
        """Hold a candidate against the original and write down what was seen.

        Args:
            candidate: What to judge.
            size: Whether it may not be larger either.

        Returns:
            Why the candidate must not stand in for the original, or None.
        """
        if not candidate.changed:
            return None
        objection = size_objection(self.facts.bytes, candidate.facts.bytes) if size else None
        referee = self.referee
        if objection is not None or referee is None:
            return objection
        objection, trial = self._judge_outputs(candidate, referee)
        candidate.trial = trial
        for name in referee.unsteady_outputs:
            self._note(
                f"Output '{name}' differs in each run of the original; nothing can be held to it."
            )
        if trial is None:
            return objection
        lost_fusion = objection is not None and objection.kind == "fusions"
        if self._settings.guard_speed and (objection is None or lost_fusion):
            slower = self._time(candidate, referee)
            if slower is not None and candidate.lossy and (why := self._why_slow_is_right()):
                self._note(f"On this machine {slower.message}, and {why}.")
                slower = None
            if lost_fusion and candidate.speed is not None and candidate.speed.is_faster:
                assert objection is not None
                self._note(f"{objection.message}, and yet the result is faster.")
                objection = None
            objection = objection or slower
        referee.let_go(trial)
        return objection

    def add_details(self, report: RunReport, candidate: Candidate) -> None:
        """Measure peak memory and layers of both models, and put them into a report.

        Nothing is added where models are not run.
        """
        referee = self.referee
        if referee is None:
            return
        settings, feed = self._settings, self._timed_feed(referee)
        paths = [self.path, *([candidate.staged.path] if candidate.changed else [])]
        try:
            looks = [
                look_closely(
                    path,
                    feed,
                    threads=settings.threads,
                    seconds=settings.seconds / 2,
                    worker=self._worker,
                )
                for path in paths
            ]
        except (RuntimeRefusalError, RuntimeCrashError) as error:
            report.notes.append(f"Memory and layers could not be measured: {error}")
            return
        before, after = looks[0], looks[-1]
        report.before, report.after = (
            dataclasses.replace(
                facts,
                load_seconds=look.footprint.load_seconds,
                peak_memory_bytes=look.footprint.peak_memory_bytes,
                load_memory_bytes=look.footprint.load_memory_bytes,
                zip_bytes=look.zip_bytes,
                kernel_seconds=look.kernel_seconds,
            )
            for facts, look in ((report.before, before), (report.after, after))
        )
        report.idle_memory_bytes = after.footprint.idle_memory_bytes
        report.inputs = {name: list(getattr(value, "shape", ())) for name, value in feed.items()}
        report.findings.layers.extend(beside(after.layers, before.layers))

    def workbench(self, crew: Crew) -> Workbench:
        """What lossy passes work with.

        Args:
            crew: Who observes and tries out.

        Raises:
            OnnxoptError: When the runtime refuses the original, or no inputs for it are found.
        """
        settings = self._settings
        resolve_target(settings.target)  # before anything is done that would be in vain
        calibration, held_out = self._samples()
        return Workbench(
            source=self.path,
            calibration=calibration,
            held_out=held_out,
            given=settings.data is not None,
            budget=settings.budget,
            worker=shared_worker("workbench"),
            crew=crew,
            threads=settings.threads,
            seconds=settings.seconds,
            target=settings.target,
            goal=settings.goal,
            effort=settings.effort,
            most_bytes=self.facts.bytes,
            on_step=self._on_step,
        )

    def close(self) -> None:
        """Let go of the original's session, if it got that far."""
        with waiting():
            self._executor.shutdown()
        if self._referee.exception() is None:
            referee = self._referee.result()
            if referee is not None:
                referee.close()

    def abandon(self) -> None:
        """Stop whatever runs, without waiting for it."""
        if not self._referee.done():
            self._worker.interrupt()

    def _samples(self) -> tuple[Samples, Samples]:
        """Samples to calibrate on, and those to judge with."""
        if self._source is not None and self._settings.data is not None:
            return split(self._source.files)
        referee = self.referee
        made_up = Samples(lambda: [] if referee is None else referee.feeds)
        return made_up, made_up

    def _judge_outputs(
        self, candidate: Candidate, referee: Referee
    ) -> tuple[Objection | None, Trial | None]:
        path = candidate.staged.path
        if not candidate.lossy:
            objection, trial, candidate.differences = referee.judge(path, on_run=self._tell_run)
            return objection, trial
        objection, trial, candidate.fidelity = referee.judge_lossy(
            path,
            self._settings.budget,
            lambda: _at_most(self._samples()[1], _HELD_OUT_BYTES),
            self._tell_run,
        )
        return objection, trial

    def _tell_run(self, text: str) -> None:
        self._on_step(f"verifying, sample {text}")

    def _time(self, candidate: Candidate, referee: Referee) -> Objection | None:
        assert candidate.trial is not None
        self._on_step("timing beside the original")
        guard = SpeedGuard(
            self._worker,
            referee.reference,
            self._timed_feed(referee),
            threads=self._settings.threads,
            seconds=self._settings.seconds,
            together=self._together,
        )
        objection, candidate.speed = guard.judge(candidate.trial)
        candidate.samples = guard.samples
        return objection

    def _timed_feed(self, referee: Referee) -> Feed:
        """The largest feed that was made up, or the first where runs are dear."""
        return referee.feeds[-1] if self._together else referee.feeds[0]

    def _why_slow_is_right(self) -> str:
        """Why a lossy result may be slower than the original here; empty where it may not."""
        if self._settings.goal == "size":
            return "the goal is size"
        target = resolve_target(self._settings.target)
        return "" if target.is_timed_here else f"it is made for the target {target.name}"

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _referee_maker(self, model: ir.Model) -> Callable[[], Referee | None]:
        """What is to run beside the passes, having looked at the model before they change it."""
        settings = self._settings
        if settings.verify == "off":
            self._note("Outputs were not compared, since verification is off.")
            return lambda: None
        unknown = _custom_operators(model)
        if unknown:
            _check_structure(model, self.path)
            names = ", ".join(unknown)
            self._note(f"Outputs were not compared: ONNX Runtime has no operator {names}.")
            return lambda: None
        data = None if settings.data is None else pathlib.Path(settings.data)
        source = FeedSource(model, data, FeedRequest(settings.values, settings.shapes))
        self._source = source

        def make() -> Referee:
            try:
                return Referee(
                    self._worker,
                    self.path,
                    lambda try_run: source.feeds(try_run, _MOST_FEEDS),
                    threads=settings.threads,
                    tolerance=settings.tolerance,
                    seconds=0.0 if self._together else settings.seconds / 2,
                    keep_open=self._together,
                )
            except RuntimeRefusalError as error:
                raise ModelError(f"ONNX Runtime refuses {self.path}: {error}") from error
            except RuntimeCrashError as error:
                raise ModelError(f"{self.path} cannot be run: {error}") from error

        return make


def _while_working(make: Callable[[], Referee | None]) -> Referee | None:
    with working():
        return make()


def _at_most(samples: Samples, most_bytes: int) -> list[Feed]:
    """The first samples, as many as are wanted and fit."""
    feeds: list[Feed] = []
    taken = 0
    for feed in samples:
        taken += sum(getattr(array, "nbytes", 0) for array in feed.values())
        if feeds and (taken > most_bytes or len(feeds) >= _MOST_HELD_OUT):
            break
        feeds.append(feed)
    return feeds


def _custom_operators(model: ir.Model) -> list[str]:
    """Operators that need a library of their own to run, as ``domain.operator``."""
    local = {(identifier[0], identifier[1]) for identifier in model.functions}
    found = {
        f"{node.domain}.{node.op_type}"
        for graph in root_graphs(model)
        for node in all_nodes(graph)
        if node.domain not in _RUNTIME_DOMAINS and (node.domain, node.op_type) not in local
    }
    return sorted(found)


def _check_structure(model: ir.Model, source: pathlib.Path) -> None:
    """Check what can be checked without running: names, order, types of attributes."""
    try:
        onnx.checker.check_model(light_proto(model))
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{source} is not a valid model: {str(error).splitlines()[0]}") from error
