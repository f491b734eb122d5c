"""What a lossy pass works with: samples, a budget, a place to run models, and the time to take."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

from onnxopt.accuracy import Budget
from onnxopt.parallel import ALONE, Crew
from onnxopt.runtime.worker import Worker
from onnxopt.samples import Samples

__all__ = ["Effort", "Goal", "Workbench"]

Goal = Literal["latency", "size", "balanced"]
Effort = Literal["low", "medium", "high"]


@dataclasses.dataclass
class Workbench:
    """What the pass manager hands to passes that ask for it.

    Attributes:
        source: Path of the original model, the reference of all that is measured.
        calibration: Samples to learn from.
        held_out: Samples to judge with; the optimizer judges the end result with the same ones, so
            nothing may be fitted to them.
        given: Whether the samples are the user's; made-up ones tell little about real ranges.
        budget: What the result may cost in accuracy.
        worker: Runs models; a process of its own, used by passes only.
        crew: Who observes and tries out, where that can be divided. What comes of it does not
            depend on them, and they have nothing to do while something is timed.
        threads: Threads for one operator, in all that is run and timed.
        seconds: Time for one comparison of speed.
        target: The hardware that the model is for; ``auto`` is this machine.
        goal: What to gain.
        effort: How much time may go into better numbers.
        most_bytes: What the result may weigh, files of weights included; None for no limit.
        on_step: Told what is being done, for a progress display.
        memory: Findings by pass, for when the same pipeline runs again on the same model, as it
            does when the pass at fault is looked for. Keys should hold what a finding depends on.
    """

    source: pathlib.Path
    calibration: Samples
    held_out: Samples
    given: bool
    budget: Budget
    worker: Worker
    crew: Crew = ALONE
    threads: int = 1
    seconds: float = 1.0
    target: str = "auto"
    goal: Goal = "latency"
    effort: Effort = "medium"
    most_bytes: int | None = None
    on_step: Callable[[str], None] = lambda step: None
    memory: dict[Any, Any] = dataclasses.field(default_factory=dict)
