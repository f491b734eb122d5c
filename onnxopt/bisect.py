"""Find the pass, and then the single rewrite, that first breaks a model.

Passes are deterministic, so a pipeline can be run again up to any point. Two binary searches do:
over the runs of passes, then over the rewrites of the run at fault.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shlex
import tempfile
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from onnxopt.data import FeedRequest, FeedSource
from onnxopt.errors import (
    ModelError,
    OptionError,
    PassFailure,
    RuntimeCrashError,
    RuntimeRefusalError,
)
from onnxopt.halving import first_that
from onnxopt.instruments.verify import KeepInterface, Objection, PassRejectedError, Referee
from onnxopt.model import Interface, load, restore_interface, save
from onnxopt.pass_contract import Instrument, Kind, Outcome, Pass, PassReport
from onnxopt.pass_manager import PassManager, parse_pipeline
from onnxopt.runtime.compare import Tolerance
from onnxopt.runtime.worker import Worker, shared_worker

__all__ = ["BisectReport", "Culprit", "bisect"]

#: So many samples are compared.
_MOST_FEEDS = 8


@dataclasses.dataclass(frozen=True)
class Culprit:
    """What breaks the model.

    Attributes:
        pass_name: The pass.
        pass_text: The same as it stands in the pipeline, with its options.
        run: Which run of a pass it is, from 1; passes run again while they make work for another.
        problem: What is wrong with the model after it.
        rewrite: The rewrite of that run that first breaks it, from 1; None when the pass cannot be
            stopped half-way.
        rewrites: How many the run makes.
        rule: The rule of that rewrite, where it is known.
        removed: Nodes that the rewrite took away, or changed.
        added: Nodes that it put in their place.
        command: A command that shows it again.
    """

    pass_name: str
    pass_text: str
    run: int
    problem: str
    rewrite: int | None
    rewrites: int
    rule: str
    removed: tuple[str, ...]
    added: tuple[str, ...]
    command: str


@dataclasses.dataclass(frozen=True)
class BisectReport:
    """What came of the search.

    Attributes:
        model: Path of the model.
        pipeline: The pipeline as text.
        runs: How many runs of passes the whole pipeline takes.
        culprit: What breaks the model; None when nothing does.
    """

    model: str
    pipeline: str
    runs: int
    culprit: Culprit | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return dataclasses.asdict(self)


def bisect(
    model: str | os.PathLike[str],
    pipeline: str = "exact",
    *,
    data: pathlib.Path | None = None,
    request: FeedRequest | None = None,
    tolerance: Tolerance | None = None,
    threads: int = 1,
    reproducer: pathlib.Path | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> BisectReport:
    """Find what first breaks a model: a crash, a refusal of the runtime, or other outputs.

    Args:
        model: Path of the model.
        pipeline: Pipeline as text.
        data: Folder of ``.npz`` feeds or one ``.npz`` of stacked samples; made up when None.
        request: What is fixed of made-up feeds.
        tolerance: How far outputs may be apart.
        threads: Threads for one operator.
        reproducer: Folder for the models just before and just after the rewrite at fault.
        on_step: Told what is being done.

    Raises:
        OnnxoptError: When the original cannot be read or run, or an option is wrong.
    """
    path = pathlib.Path(model)
    for pass_ in parse_pipeline(pipeline):
        if pass_.kind is Kind.LOSSY:
            raise OptionError(
                f"pass '{pass_.name}' changes the numbers on purpose, so there is no fault to look "
                f"for; use 'optimize', which judges it by the accuracy budget"
            )
    search = _Search(path, pipeline, tolerance or Tolerance(), threads, on_step)
    search.run_original(FeedSource(load(path), data, request))
    runs = search.count_runs()
    culprit = search.find(runs, reproducer)
    return BisectReport(str(path), pipeline, runs, culprit)


class _StopAfter(Instrument):
    """Lets so many runs of passes happen, the last of them with a limit on its rewrites."""

    def __init__(self, runs: int | None, rewrites: int | None) -> None:
        self._runs, self._rewrites = runs, rewrites
        self.started = 0
        self.last: Pass | None = None
        self.outcome: Outcome | None = None

    def should_run(self, pass_: Pass, model: ir.Model) -> bool:
        """Whether the limit is still ahead."""
        return self._runs is None or self.started < self._runs

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Count, and limit the last run."""
        self.started += 1
        self.last = pass_
        pass_.max_rewrites = self._rewrites if self.started == self._runs else None

    def after_pass(self, pass_: Pass, model: ir.Model, report: PassReport) -> None:
        """Keep what it did."""
        self.outcome = report.outcome


@dataclasses.dataclass
class _State:
    """The model after a part of the pipeline.

    Attributes:
        model: The model; None when a pass raised.
        stop: What ran.
        problem: Why it is no good, or None.
    """

    model: ir.Model | None
    stop: _StopAfter
    problem: str | None


class _Search:
    def __init__(
        self,
        path: pathlib.Path,
        pipeline: str,
        tolerance: Tolerance,
        threads: int,
        on_step: Callable[[str], None],
    ) -> None:
        self.path, self.pipeline, self.tolerance = path, pipeline, tolerance
        self.threads, self.on_step = threads, on_step
        self.worker: Worker = shared_worker("trials")
        parse_pipeline(pipeline)  # a wrong option is said before anything runs

    def run_original(self, source: FeedSource) -> None:
        """See what the original does."""
        self.on_step("running the original")
        try:
            self.referee = Referee(
                self.worker,
                self.path,
                lambda try_run: source.feeds(try_run, _MOST_FEEDS),
                threads=self.threads,
                tolerance=self.tolerance,
            )
        except RuntimeRefusalError as error:
            raise ModelError(f"ONNX Runtime refuses {self.path}: {error}") from error
        except RuntimeCrashError as error:
            raise ModelError(f"{self.path} cannot be run: {error}") from error

    def count_runs(self) -> int:
        """How many runs of passes the pipeline takes, up to one that raises."""
        self.on_step("running the pipeline")
        return self._state(None, judged=False).stop.started

    def find(self, runs: int, reproducer: pathlib.Path | None) -> Culprit | None:
        """Search; None when the whole pipeline leaves a good model."""
        if self._state(runs).problem is None:
            return None
        high = first_that(
            lambda count: self._state(count).problem is not None,
            0,
            runs,
            lambda text: self.on_step(f"searching the runs of passes, try {text}"),
        )
        broken = self._state(high)
        rewrite = self._find_rewrite(high, broken)
        before = self._state(high, rewrite - 1) if rewrite is not None else self._state(high - 1)
        after = self._state(high, rewrite) if rewrite is not None else broken
        assert after.problem is not None
        guilty = after.stop.last
        assert guilty is not None
        removed, added = _changed_nodes(before.model, after.model)
        return Culprit(
            guilty.name,
            guilty.text,
            high,
            after.problem,
            rewrite,
            _rewrites(broken.stop),
            _rule(before.stop, after.stop) if rewrite is not None else "",
            removed,
            added,
            self._reproduce(reproducer, before.model, after.model, guilty),
        )

    def _find_rewrite(self, run: int, broken: _State) -> int | None:
        """The first rewrite of a run that breaks the model."""
        high = _rewrites(broken.stop)
        if broken.model is None or high == 0 or self._state(run, 0).problem is not None:
            return None  # it raises, or does not heed the limit
        return first_that(
            lambda count: self._state(run, count).problem is not None,
            0,
            high,
            lambda text: self.on_step(f"searching the rewrites of a run, try {text}"),
        )

    def _state(self, runs: int | None, rewrites: int | None = None, judged: bool = True) -> _State:
        """Run a part of the pipeline on the original, and look at the result."""
        model = load(self.path)
        interface = Interface.of(model)
        stop = _StopAfter(runs, rewrites)
        manager = PassManager(parse_pipeline(self.pipeline), [stop, KeepInterface(interface)])
        try:
            manager.run(model)
        except PassRejectedError as error:
            return _State(model, stop, error.objection.message)
        except PassFailure as error:
            return _State(None, stop, str(error))
        if not judged:
            return _State(model, stop, None)
        restore_interface(model, interface)
        objection = self._judge(model)
        return _State(model, stop, None if objection is None else objection.message)

    def _judge(self, model: ir.Model) -> Objection | None:
        with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
            candidate = pathlib.Path(folder) / "model.onnx"
            save(model, candidate)
            objection, _, _ = self.referee.judge(candidate, fusions=False)
        return objection

    def _reproduce(
        self,
        folder: pathlib.Path | None,
        before: ir.Model | None,
        after: ir.Model | None,
        guilty: Pass,
    ) -> str:
        """Write the models around the fault, if asked to; a command that shows it again."""
        if folder is None or before is None:
            given = ["bisect", str(self.path), "--passes", self.pipeline]
            return shlex.join(["onnxopt", *given, "--reproducer", "FOLDER"])
        folder.mkdir(parents=True, exist_ok=True)
        paths = [str(folder / name) for name in ("before.onnx", "after.onnx")]
        save(before, paths[0])
        if after is None:
            return shlex.join(["onnxopt", "optimize", *paths, "--passes", guilty.text])
        save(after, paths[1])
        return shlex.join(["onnxopt", "check", *paths])


def _rewrites(stop: _StopAfter) -> int:
    return 0 if stop.outcome is None else stop.outcome.rewritten.total()


def _rule(before: _StopAfter, after: _StopAfter) -> str:
    """The rule that counts one rewrite more than just before."""
    assert before.outcome is not None
    assert after.outcome is not None
    return next(iter(after.outcome.rewritten - before.outcome.rewritten), "")


def _changed_nodes(
    before: ir.Model | None, after: ir.Model | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Nodes that are only in one of two models, told by operator, inputs and outputs."""
    if before is None or after is None:
        return (), ()
    left, right = _node_texts(before), _node_texts(after)
    return (
        tuple(text for key, text in left.items() if key not in right),
        tuple(text for key, text in right.items() if key not in left),
    )


def _node_texts(model: ir.Model) -> dict[tuple[str, ...], str]:
    texts: dict[tuple[str, ...], str] = {}
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            inputs = [value.name or "" if value is not None else "" for value in node.inputs]
            outputs = [value.name or "" for value in node.outputs]
            key = (node.op_type, *inputs, "->", *outputs)
            label = f" '{node.name}'" if node.name else ""
            texts[key] = f"{node.op_type}{label} ({', '.join(inputs)}) to {', '.join(outputs)}"
    return texts
