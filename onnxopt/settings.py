"""How to optimize: everything a caller can choose, with defaults that are safe."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from onnxopt.accuracy import Budget
from onnxopt.model import ExternalData
from onnxopt.runtime.compare import Tolerance
from onnxopt.workbench import Effort, Goal

__all__ = ["Settings"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to optimize.

    Attributes:
        passes: Pipeline text, or the name of a pipeline; when None, ``tuned`` where there are
            samples to learn from and models may run, else ``exact``.
        skip: Passes to leave out of it.
        verify: Compare outputs at the end, after each pass that changed something, or never.
        guard_speed: Time the result against the original and undo what makes it slower.
        data: Folder of ``.npz`` feeds or one ``.npz`` of stacked samples; made up when None.
        values: Whole inputs by name, where inputs are made up.
        shapes: Input shapes by name, where inputs are made up.
        threads: Threads for one operator when models run.
        seconds: Time for one comparison of speed.
        tolerance: How far outputs may be apart, as long as no lossy pass changed the model.
        budget: What lossy passes may cost in accuracy.
        target: The hardware that lossy passes aim at; ``auto`` is this machine.
        goal: What lossy passes are to gain.
        effort: How much time lossy passes may take.
        external_data: Weights beside the model: as the input had it, always, or never.
        details: Measure peak memory and the time of each layer too, for a report.
        in_place: Allow the output to replace the input.
        dry_run: Do everything but write the output.
        reproducer: Folder for reproducers of failing passes; beside the output when None.
        workers: Processes that observe samples and try out candidates; the result is the same.
        scheduler: Address of a dask scheduler, whose workers do so instead.
    """

    passes: str | None = None
    skip: tuple[str, ...] = ()
    verify: Literal["end", "each", "off"] = "end"
    guard_speed: bool = True
    data: str | os.PathLike[str] | None = None
    values: Mapping[str, np.ndarray[Any, Any]] = dataclasses.field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    threads: int = 1
    seconds: float = 1.0
    tolerance: Tolerance = dataclasses.field(default_factory=Tolerance)
    budget: Budget = dataclasses.field(default_factory=Budget)
    target: str = "auto"
    goal: Goal = "latency"
    effort: Effort = "medium"
    external_data: ExternalData = "auto"
    details: bool = False
    in_place: bool = False
    dry_run: bool = False
    reproducer: str | os.PathLike[str] | None = None
    workers: int = 1
    scheduler: str | None = None

    @property
    def pipeline(self) -> str:
        """The pipeline that is meant."""
        if self.passes is not None:
            return self.passes
        return "exact" if self.data is None or self.verify == "off" else "tuned"
