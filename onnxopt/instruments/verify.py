"""Hold a candidate against the original: does it load, keep its interface, and give the answers.

The runtime's default optimization level is what users deploy, so that is what is compared. Where a
candidate's outputs are out of tolerance, the original is asked how far apart it is from itself
without the runtime's optimizations: a model that rounding alone moves that far cannot be held to
less.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import onnx_ir as ir

from onnxopt.accuracy import Budget, Fidelity, Score, fidelity
from onnxopt.errors import OnnxoptError, RuntimeCrashError, RuntimeRefusalError
from onnxopt.instruments.fusions import census, lost_fusions
from onnxopt.model import Interface, stage
from onnxopt.pass_contract import Instrument, Pass, PassReport
from onnxopt.runtime.compare import Difference, Tolerance, compare
from onnxopt.runtime.messages import SessionInfo
from onnxopt.runtime.trial import Feed, Trial, try_model
from onnxopt.runtime.worker import Worker

__all__ = ["Objection", "PassRejectedError", "Referee", "VerifyEach"]

#: A candidate may be so many times further off than the original is from its unoptimized self.
_NOISE_ALLOWANCE = 4.0


@dataclasses.dataclass(frozen=True)
class Objection:
    """Why a candidate must not stand in for the original.

    Attributes:
        kind: What went wrong.
        message: One phrase with the particulars.
    """

    kind: Literal[
        "interface", "crash", "refused", "outputs", "accuracy", "fusions", "size", "speed"
    ]
    message: str


class PassRejectedError(OnnxoptError):
    """The model was no good after a pass.

    Attributes:
        pass_name: The pass.
        objection: What was wrong.
    """

    def __init__(self, pass_name: str, objection: Objection) -> None:
        super().__init__(f"after pass '{pass_name}': {objection.message}")
        self.pass_name = pass_name
        self.objection = objection


class Referee:
    """Knows what the original does and says what a candidate does worse.

    Args:
        worker: Where models run.
        original: Path of the original model.
        make_feeds: Given a way to run the original, gives the feeds to compare with.
        threads: Threads for one operator.
        tolerance: How far outputs may be apart.
        seconds: Time to spend on a first look at each model's speed; 0 for none.
        keep_open: Leave the sessions open for a race; two large models take too much memory.

    Attributes:
        feeds: Inputs of the runs that are compared.
        reference: What the original showed.
    """

    def __init__(
        self,
        worker: Worker,
        original: str | os.PathLike[str],
        make_feeds: Callable[[Callable[[Feed], object]], list[Feed]],
        *,
        threads: int = 1,
        tolerance: Tolerance | None = None,
        seconds: float = 0.0,
        keep_open: bool = False,
    ) -> None:
        self.tolerance = tolerance or Tolerance()
        self._worker = worker
        self._original = original
        self._threads = threads
        self._seconds = seconds
        self._keep_open = keep_open
        info = worker.open(original, threads=threads, profile=True)
        seen: dict[int, list[Any]] = {}

        def run(feed: Feed) -> list[Any]:
            seen[id(feed)] = outputs = worker.run(info.session, feed)
            return outputs

        self.feeds = make_feeds(run)
        known = [seen[id(feed)] if id(feed) in seen else run(feed) for feed in self.feeds]
        self.reference = self._try(original, self.feeds, info, known)
        self._held_out: tuple[list[Feed], list[list[Any]]] | None = None
        self._score: float | None = None
        self._own_noise: list[list[Difference]] | None = None
        self._unsteady: set[str] | None = None

    @property
    def unsteady_outputs(self) -> list[str]:
        """Outputs that cannot be compared, as far as that has come up: they differ in each run."""
        return sorted(self._unsteady or ())

    def close(self) -> None:
        """Let go of the original's session."""
        self.let_go(self.reference)

    def let_go(self, trial: Trial) -> None:
        """Close the session of a trial that is over."""
        trial.close(self._worker)

    def judge(
        self,
        candidate: str | os.PathLike[str],
        *,
        fusions: bool = True,
        on_run: Callable[[str], None] = lambda text: None,
    ) -> tuple[Objection | None, Trial | None, list[Difference]]:
        """Run a candidate.

        Args:
            candidate: Path of the model.
            fusions: Whether the runtime may not fuse less than in the original.
            on_run: Told which run begins, such as ``2 of 8``.

        Returns:
            The first objection, or None; what the run showed, if it ran; and how each output of
            each feed differs.
        """
        objection, trial = self._first_look(candidate, self.feeds, on_run)
        if objection is not None or trial is None:
            return objection, trial, []
        differences, wrong = self._differences(trial)
        if wrong is not None:
            return (
                Objection("outputs", f"output '{wrong.output}' {wrong.reason}"),
                trial,
                differences,
            )
        if fusions:
            lost = lost_fusions(census(self.reference.kernels), census(trial.kernels))
            if lost:
                message = f"ONNX Runtime fuses less: {'; '.join(lost)}"
                return Objection("fusions", message), trial, differences
        return None, trial, differences

    def judge_lossy(
        self,
        candidate: str | os.PathLike[str],
        budget: Budget,
        held_out: Callable[[], list[Feed]],
        on_run: Callable[[str], None] = lambda text: None,
    ) -> tuple[Objection | None, Trial | None, Fidelity | None]:
        """Run a candidate of which only a part of the accuracy is asked.

        Args:
            candidate: Path of the model.
            budget: What it may cost.
            held_out: Feeds to judge with; asked once.
            on_run: Told which run of the candidate begins, such as ``2 of 64``.

        Returns:
            The first objection, or None; what the run showed, if it ran; and how true it is.
        """
        if self._held_out is None:
            feeds = held_out()
            original = try_model(self._worker, self._original, feeds, threads=self._threads)
            self._held_out = feeds, original.outputs
        feeds, expected = self._held_out
        objection, trial = self._first_look(candidate, feeds, on_run)
        if objection is not None or trial is None:
            return objection, trial, None
        names = [port.name for port in self.reference.info.outputs]
        found = fidelity(expected, trial.outputs, names)
        if budget.evaluate is not None:
            if self._score is None:
                self._score = budget.evaluate(os.fspath(self._original))
            score = Score(self._score, budget.evaluate(os.fspath(candidate)))
            found = dataclasses.replace(found, score=score)
        message = budget.objection(found)
        return None if message is None else Objection("accuracy", message), trial, found

    def _first_look(
        self,
        candidate: str | os.PathLike[str],
        feeds: list[Feed],
        on_run: Callable[[str], None],
    ) -> tuple[Objection | None, Trial | None]:
        """Whether a candidate runs and has the original's interface, and what running it showed."""
        try:
            trial = self._try(candidate, feeds, on_run=on_run)
        except RuntimeCrashError as error:
            return Objection("crash", str(error)), None
        except RuntimeRefusalError as error:
            return Objection("refused", f"ONNX Runtime refuses the model: {error}"), None
        ports = [(port.name, port.type) for port in (*trial.info.inputs, *trial.info.outputs)]
        wanted = [
            (port.name, port.type)
            for port in (*self.reference.info.inputs, *self.reference.info.outputs)
        ]
        if ports != wanted:
            return Objection("interface", "inputs or outputs changed"), trial
        return None, trial

    def _try(
        self,
        model: str | os.PathLike[str],
        feeds: list[Feed],
        info: SessionInfo | None = None,
        outputs: list[list[Any]] | None = None,
        on_run: Callable[[str], None] = lambda text: None,
    ) -> Trial:
        return try_model(
            self._worker,
            model,
            feeds,
            threads=self._threads,
            seconds=self._seconds,
            keep_open=self._keep_open,
            info=info,
            outputs=outputs,
            on_run=on_run,
        )

    def _differences(self, trial: Trial) -> tuple[list[Difference], Difference | None]:
        """All differences, and the first that even the original's own noise does not explain."""
        names = [port.name for port in self.reference.info.outputs]
        everything: list[Difference] = []
        wrong: Difference | None = None
        for index, (expected, actual) in enumerate(
            zip(self.reference.outputs, trial.outputs, strict=True)
        ):
            for difference in compare(expected, actual, names, self.tolerance):
                if not difference.agrees and (
                    self._is_unsteady(difference.output) or self._is_noise(index, difference)
                ):
                    difference = dataclasses.replace(
                        difference, agrees=True, reason="", own_noise=True
                    )
                if not difference.agrees and wrong is None:
                    wrong = difference
                everything.append(difference)
        return everything, wrong

    def _is_unsteady(self, output: str) -> bool:
        """Whether the original itself gives another output each time it is run."""
        if self._unsteady is None:
            # Random numbers start alike in every session, and go on from run to run.
            twice = try_model(
                self._worker, self._original, [*self.feeds, *self.feeds], threads=self._threads
            )
            count, names = len(self.feeds), [port.name for port in self.reference.info.outputs]
            self._unsteady = {
                each.output
                for first, second in zip(twice.outputs[:count], twice.outputs[count:], strict=True)
                for each in compare(first, second, names, self.tolerance)
                if not each.agrees
            }
        return output in self._unsteady

    def _is_noise(self, feed: int, difference: Difference) -> bool:
        """Whether the original is as far from itself when the runtime does not optimize it."""
        if self._own_noise is None:
            plain = try_model(
                self._worker,
                self._original,
                self.feeds,
                threads=self._threads,
                level="disabled",
            )
            names = [port.name for port in self.reference.info.outputs]
            self._own_noise = [
                compare(expected, actual, names, self.tolerance)
                for expected, actual in zip(self.reference.outputs, plain.outputs, strict=True)
            ]
        return any(
            own.output == difference.output
            and own.max_abs < float("inf")
            and difference.max_abs <= _NOISE_ALLOWANCE * own.max_abs
            for own in self._own_noise[feed]
        )


class VerifyEach(Instrument):
    """Judges the model after every pass that changed it.

    Args:
        referee: Runs the model; None to check the interface only.
        folder: A folder for the models it writes.
    """

    def __init__(self, referee: Referee | None, folder: pathlib.Path) -> None:
        self._referee = referee
        self._folder = folder

    def after_pass(self, pass_: Pass, model: ir.Model, report: PassReport) -> None:
        """Raise `PassRejectedError` when the model is no good any more."""
        if not report.outcome.changed_model or self._referee is None:
            return
        staged = stage(model, self._folder / "candidate.onnx")
        try:
            objection, trial, _ = self._referee.judge(staged.path)
        finally:
            staged.discard()
        if trial is not None:
            self._referee.let_go(trial)
        if objection is not None:
            raise PassRejectedError(pass_.name, objection)


class KeepInterface(Instrument):
    """Checks after every pass that inputs, outputs, opset imports and metadata are the same.

    Element types and shapes of outputs may be refined meanwhile; they are put back when saving. A
    pass that says so may raise opset versions.
    """

    def __init__(self, interface: Interface) -> None:
        self._before = _without_types(interface)

    def after_pass(self, pass_: Pass, model: ir.Model, report: PassReport) -> None:
        """Raise `PassRejectedError` when something is not."""
        if report.outcome.modified:
            if pass_.raises_opset:
                self._before = _with_raised_opsets(self._before, model)
            change = self._before.difference(_without_types(Interface.of(model)))
            if change is not None:
                raise PassRejectedError(pass_.name, Objection("interface", change))


def _with_raised_opsets(interface: Interface, model: ir.Model) -> Interface:
    """The interface with the model's opset versions, where they are higher, and new domains."""
    known = dict(interface.opset_imports)
    raised = {
        domain: max(version, known.get(domain, version))
        for domain, version in model.opset_imports.items()
    }
    return dataclasses.replace(interface, opset_imports=tuple(sorted({**known, **raised}.items())))


def _without_types(interface: Interface) -> Interface:
    return dataclasses.replace(
        interface,
        inputs=tuple((name, b"") for name, _ in interface.inputs),
        outputs=tuple((name, b"") for name, _ in interface.outputs),
    )
