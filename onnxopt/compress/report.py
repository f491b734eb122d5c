"""What a compression did, stage by stage."""

from __future__ import annotations

import dataclasses
from typing import Any

from onnxopt.accuracy import Fidelity
from onnxopt.compress.settings import Target
from onnxopt.findings import Findings, Layer
from onnxopt.runtime.statistics import Ratio

__all__ = ["CompressReport", "StageReport"]


@dataclasses.dataclass
class StageReport:
    """One station of the road.

    Attributes:
        name: What was done.
        seconds: How long it took.
        bytes: Size of the model after it.
        speed: How many times faster than the original.
        latency_seconds: Median time of one run.
        fidelity: How true it is to the original on samples that nothing learned from.
        objection: What is over the budget; empty when nothing is.
        left: What is left of the quantity that the target is about, as a share of the original's.
        reached: Whether the target is met.
        changed: Whether the stage changed the model.
        chosen: Whether this is the result.
        distillation: The report of the training, as plain data, where the stage is one.
    """

    name: str
    seconds: float
    bytes: int
    speed: Ratio
    latency_seconds: float
    fidelity: Fidelity
    objection: str
    left: float
    reached: bool
    changed: bool = True
    chosen: bool = False
    distillation: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            **{
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(self)
                if field.name not in ("speed", "fidelity")
            },
            "speed": dataclasses.asdict(self.speed),
            "fidelity": self.fidelity.to_dict(),
        }


@dataclasses.dataclass
class CompressReport:
    """What a compression did.

    Attributes:
        source: The original.
        target_path: Where the result was written; None when it was not.
        target: What was to be reached.
        bytes_before: Size of the original.
        latency_before: Median time of one run of the original, in seconds.
        stages: Every station, in order.
        samples: Samples in all.
        judged: Samples that models were judged with.
        notes: Sentences for the user.
        seconds: Time of the whole.
        environment: Machine and versions.
        layers: Those of the result, where somebody asked for details; of several facts on the same
            layer each may tell a part.
    """

    source: str
    target_path: str | None
    target: Target
    bytes_before: int
    latency_before: float
    stages: list[StageReport]
    samples: int
    judged: int
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)
    layers: list[Layer] = dataclasses.field(default_factory=list)

    @property
    def result(self) -> StageReport | None:
        """The station whose model is the result; None when that is the original."""
        return next((stage for stage in self.stages if stage.chosen), None)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "schema_version": 1,
            **{
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(self)
                if field.name not in ("target", "stages", "layers")
            },
            "target": dataclasses.asdict(self.target),
            "stages": [stage.to_dict() for stage in self.stages],
            **Findings(layers=self.layers).to_dict(),
        }
