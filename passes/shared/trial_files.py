"""Variants of a model as files that the runtime can load, for a search to try."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import tempfile
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from onnxopt.model import load, save

__all__ = ["TrialFiles", "owner_by_name"]

#: What the name of a product begins with that the runtime computes along with its activation.
_FUSED = "fused "


class TrialFiles:
    """A folder for variants of a model; its weights are written once, and variants refer to them.

    Args:
        model: The model. It is left as it is.

    Attributes:
        base: The model as it was written, to be cloned and changed.
    """

    def __init__(self, model: ir.Model) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="onnxopt-trials-")
        self._path = pathlib.Path(self._folder.name)
        self._count = itertools.count()
        save(model, self._path / "base.onnx", "always")
        self.base = load(self._path / "base.onnx")

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()

    @contextlib.contextmanager
    def saved(self, model: ir.Model) -> Iterator[pathlib.Path]:
        """A variant as a file that is there while the context lasts."""
        path = self._path / f"trial{next(self._count)}.onnx"
        ir.save(model, path)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def size(self, model: ir.Model) -> int:
        """Bytes of a variant as one file, weights included."""
        outside = [
            value.const_value
            for graph in model.graphs()
            for value in graph.initializers.values()
            if isinstance(value.const_value, ir.ExternalTensor)
        ]
        with self.saved(model) as path:
            return path.stat().st_size + sum(tensor.nbytes for tensor in outside)


def owner_by_name(kernel: str, owners: Mapping[str, str]) -> str | None:
    """What belongs to the longest name that a kernel's name begins with.

    The runtime names kernels after nodes or after what they give, and adds to that.
    """
    kernel = kernel.removeprefix(_FUSED)
    for end in range(len(kernel), 0, -1):
        if kernel[:end] in owners:
            return owners[kernel[:end]]
    return None
