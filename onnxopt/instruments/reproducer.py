"""When a pass fails: the model just before it, the pipeline, and one command to see it again."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxopt.model import save
from onnxopt.pass_contract import Instrument, Pass, PassReport
from onnxopt.pass_manager import PassManager, format_pipeline

__all__ = ["write_reproducer"]


class _ReachedError(Exception):
    """The pass that is looked for is about to run."""


class _StopBefore(Instrument):
    """Stops just before the pass that failed, counting the passes that ran."""

    def __init__(self, runs: int) -> None:
        self._left = runs

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Stop when all earlier passes have run."""
        if self._left == 0:
            raise _ReachedError
        self._left -= 1


class CountRuns(Instrument):
    """Counts the passes that came to their end, which is where a failing one is found again."""

    def __init__(self) -> None:
        self.runs = 0

    def after_pass(self, pass_: Pass, model: ir.Model, report: PassReport) -> None:
        """Count."""
        self.runs += 1


def write_reproducer(
    folder: pathlib.Path,
    load: Callable[[], ir.Model],
    passes: list[Pass],
    manager: Callable[[Sequence[Instrument]], PassManager],
    runs: int,
    failing: str,
    message: str,
    data: str | os.PathLike[str] | None = None,
) -> str:
    """Write ``model.onnx``, ``pipeline.txt`` and ``failure.json`` to a folder.

    The model is made again by running the passes that came before; they are deterministic.

    Args:
        folder: Made if it is missing; files of an earlier failure are replaced.
        load: Gives the original model, afresh.
        passes: The pipeline that failed.
        manager: What is to run them again, given who looks on.
        runs: How many passes came to their end before the failure.
        failing: Name of the pass that failed.
        message: What it said.
        data: The samples that were given.

    Returns:
        The command that shows the failure again.
    """
    model = load()
    with contextlib.suppress(_ReachedError):
        manager([_StopBefore(runs)]).run(model)
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder / "model.onnx")
    pipeline = next((pass_.text for pass_ in passes if pass_.name == failing), failing)
    paths = [str(folder / "model.onnx"), str(folder / "out.onnx")]
    samples = [] if data is None else ["--data", os.fspath(data)]
    command = shlex.join(["onnxopt", "optimize", *paths, "--passes", pipeline, *samples])
    packages = ("onnxopt", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")
    facts = {
        "pass": failing,
        "message": message,
        "whole_pipeline": format_pipeline(passes),
        "command": command,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    (folder / "pipeline.txt").write_text(pipeline + "\n")
    (folder / "failure.json").write_text(json.dumps(facts, indent=2) + "\n")
    return command
