"""How a model is stored: in what size, how much of it compactly, and what loading it takes."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from onnxopt.bench import BenchReport, bench
from onnxopt.data import FeedRequest
from onnxopt.model import bytes_on_disk, save, zipped_bytes

__all__ = ["Storage", "look_at_storage"]


@dataclasses.dataclass(frozen=True)
class Storage:
    """How a model is stored.

    Attributes:
        bytes: Size of the file and its external data.
        dense_bytes: Size of the same model with all weights written out.
        coded: How many weights are stored in a shorter form.
        zip_bytes: Size of the zipped file; None when that was not measured.
        dense_zip_bytes: Size of the zipped file with all weights written out.
        measured: Load time, memory and latency of the file, and of the one with all weights written
            out if that is another; None when they were not measured.
    """

    bytes: int
    dense_bytes: int
    coded: int
    zip_bytes: int | None = None
    dense_zip_bytes: int | None = None
    measured: BenchReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON-ready data."""
        measured = None if self.measured is None else self.measured.to_dict()
        return {**dataclasses.asdict(self), "measured": measured}


def look_at_storage(
    path: str | os.PathLike[str],
    dense: ir.Model,
    coded: int,
    *,
    measure: bool,
    data: pathlib.Path | None = None,
    request: FeedRequest | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Storage:
    """Look at how a model is stored.

    Args:
        path: The model file.
        dense: The same model with all weights written out.
        coded: How many weights the file has in a shorter form.
        measure: Whether to zip, load and run it.
        data: Inputs that it is run with; made up when None.
        request: What is fixed of made-up inputs.
        on_step: Told what is being done.

    Raises:
        OnnxoptError: When the model cannot be measured.
    """
    path = pathlib.Path(path)
    size = bytes_on_disk(path)
    if not measure and not coded:
        return Storage(size, size, coded)
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
        other = path
        if coded:
            other = pathlib.Path(folder) / f"dense-{path.name}"
            save(dense, other)
        found = Storage(size, bytes_on_disk(other), coded)
        if not measure:
            return found
        on_step("zipping")
        zipped = zipped_bytes(path)
        return dataclasses.replace(
            found,
            zip_bytes=zipped,
            dense_zip_bytes=zipped_bytes(other) if coded else zipped,
            measured=bench(
                [path, other] if coded else [path], data=data, request=request, on_step=on_step
            ),
        )
