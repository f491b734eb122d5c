"""The teacher: the original model, run by ONNX Runtime, and its outputs kept where they fit."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from onnxopt.errors import ModelError, RuntimeCrashError, RuntimeRefusalError
from onnxopt.model import load, save
from onnxopt.runtime.worker import Worker

__all__ = ["CallableTeacher", "OnnxTeacher", "Teacher"]

Arrays = dict[str, np.ndarray[Any, Any]]


class Teacher(Protocol):
    """What a student learns from."""

    def outputs(self, feed: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """The outputs by name for one batch."""
        ...


class OnnxTeacher:
    """An ONNX model as a teacher, in a child process.

    Args:
        path: The model.
        hints: Names of inner tensors that are wanted besides the outputs.
        threads: Threads for one operator.

    Attributes:
        names: Its outputs, in order, without the hints.

    Raises:
        ModelError: When the model cannot be read or run, or has no tensor of such a name.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, hints: Sequence[str] = (), threads: int = 1
    ) -> None:
        self._path = pathlib.Path(path)
        self._worker = Worker()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        source = self._path if not hints else self._with_hints(hints)
        try:
            info = self._worker.open(source, threads=threads)
        except (RuntimeRefusalError, RuntimeCrashError) as error:
            self.close()
            raise ModelError(f"ONNX Runtime refuses the teacher {path}: {error}") from error
        self._session = info.session
        self._all_names = [port.name for port in info.outputs]
        self.names = [name for name in self._all_names if name not in hints]

    def __enter__(self) -> OnnxTeacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def outputs(self, feed: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """Run the model once.

        Raises:
            RuntimeRefusalError: When the feed does not fit the model.
        """
        return dict(zip(self._all_names, self._worker.run(self._session, feed), strict=True))

    def close(self) -> None:
        """End the child process."""
        self._worker.stop()
        if self._folder is not None:
            self._folder.cleanup()

    def _with_hints(self, hints: Sequence[str]) -> pathlib.Path:
        """Write the model with inner tensors as outputs."""
        model = load(self._path)
        expose(model, hints, f"the teacher {self._path}")
        self._folder = tempfile.TemporaryDirectory(prefix="onnxopt-teacher-")
        path = pathlib.Path(self._folder.name) / "teacher.onnx"
        save(model, path)
        return path


class CallableTeacher:
    """A function as a teacher, such as a PyTorch module that the user wrapped.

    Args:
        function: From a feed to outputs by name.
    """

    def __init__(self, function: Any) -> None:
        self._function = function

    def outputs(self, feed: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """Call the function."""
        return {name: np.asarray(value) for name, value in self._function(feed).items()}


def expose(model: Any, names: Sequence[str], what: str) -> None:
    """Make inner tensors of a model its outputs, after those that it has.

    Args:
        model: An ``onnx_ir.Model``, changed in place.
        names: The tensors.
        what: How to call the model in an error.

    Raises:
        ModelError: When the model computes no tensor of such a name in its main graph.
    """
    import difflib

    known = {value.name: value for node in model.graph for value in node.outputs if value.name}
    present = {value.name for value in model.graph.outputs}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; is it '{close[0]}'?" if close else ""
            raise ModelError(f"{what} computes no tensor '{name}'{hint}")
        if name not in present:
            model.graph.outputs.append(known[name])
