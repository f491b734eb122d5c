"""The report of one optimization, as data.

`RunReport.to_dict` is the content of ``--report report.json``; everything that is shown anywhere
comes from it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from onnxopt.accuracy import Fidelity
from onnxopt.findings import Findings, Treatment
from onnxopt.pass_contract import PassReport
from onnxopt.runtime.compare import Difference
from onnxopt.runtime.statistics import Latency, Ratio

__all__ = ["SCHEMA_VERSION", "ModelFacts", "RunReport", "Undone"]

#: Grows when a field changes its meaning or goes; new fields do not count.
SCHEMA_VERSION = 1
#: So many refusals with their nodes are kept for each reason; the counts are always whole.
_EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """One of the two models.

    Attributes:
        bytes: Size of the file and its external data.
        nodes: Nodes, those of bodies and functions included.
        ops: Nodes by operator.
        load_seconds: Time that ONNX Runtime took to load it; None when it was not run.
        kernels: Nodes of the runtime's own optimized graph that ran, by operator.
        latency: Time for one run; None when it was not timed.
        peak_memory_bytes: Largest resident size of a process that loads it once and runs it once;
            None when that was not measured.
        kernel_seconds: Time for one run by the operator that the runtime chose, if it was profiled.
        load_memory_bytes: Largest resident size of such a process by the time the model is loaded.
        zip_bytes: Size of the zipped files; None when that was not measured.
    """

    bytes: int
    nodes: int
    ops: dict[str, int]
    load_seconds: float | None = None
    kernels: dict[str, int] = dataclasses.field(default_factory=dict)
    latency: Latency | None = None
    peak_memory_bytes: int | None = None
    kernel_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    load_memory_bytes: int | None = None
    zip_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Undone:
    """A pass that was left out because of what it did to the model.

    Attributes:
        name: The pass.
        reason: What was wrong.
        reproducer: Command that shows a failure again, if one was written.
    """

    name: str
    reason: str
    reproducer: str = ""


@dataclasses.dataclass
class RunReport:
    """What went in, what came out, what each pass did, what was undone, and what was checked.

    Attributes:
        source: The original model.
        target: Where the result was written, if it was.
        pipeline: The pipeline as text.
        before: The original.
        after: The result.
        changed: Whether the result is another model than the original.
        verified: Whether outputs were compared in ONNX Runtime.
        feeds: Number of feeds that were compared.
        differences: How each output of each feed differs from the original's.
        fidelity: How true the result is, where a lossy pass changed it.
        speed: Original / result, paired; None when it was not timed.
        passes: Each run of each pass.
        undone: Passes that were left out.
        notes: Sentences for the user.
        seconds: Time of the whole run.
        environment: Machine and versions.
        idle_memory_bytes: Resident size of a process before it loads a model, where peak memory was
            measured.
        inputs: Shape of each input of the timed runs.
        findings: What the road itself found out; what passes found is with their outcomes.
        treatments: How every node of the original is computed in the result, where a pass told.
    """

    source: str
    target: str | None
    pipeline: str
    before: ModelFacts
    after: ModelFacts
    changed: bool = False
    verified: bool = False
    feeds: int = 0
    differences: list[Difference] = dataclasses.field(default_factory=list)
    fidelity: Fidelity | None = None
    speed: Ratio | None = None
    passes: list[PassReport] = dataclasses.field(default_factory=list)
    undone: list[Undone] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)
    idle_memory_bytes: int | None = None
    inputs: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    findings: Findings = dataclasses.field(default_factory=Findings)
    treatments: list[Treatment] = dataclasses.field(default_factory=list)

    @property
    def all_findings(self) -> Findings:
        """What the road found out, and then the passes, which know better, in their order."""
        return Findings.together(
            [self.findings, *(report.outcome.findings for report in self.passes)]
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data; infinities become null."""
        document = {
            "schema_version": SCHEMA_VERSION,
            "source": self.source,
            "target": self.target,
            "pipeline": self.pipeline,
            "changed": self.changed,
            "verified": self.verified,
            "feeds": self.feeds,
            "before": dataclasses.asdict(self.before),
            "after": dataclasses.asdict(self.after),
            "speed": None if self.speed is None else _ratio(self.speed),
            "differences": [dataclasses.asdict(each) for each in self.differences],
            "fidelity": None if self.fidelity is None else self.fidelity.to_dict(),
            "passes": [_pass(report) for report in self.passes],
            "undone": [dataclasses.asdict(each) for each in self.undone],
            "notes": self.notes,
            "seconds": self.seconds,
            "environment": self.environment,
            "idle_memory_bytes": self.idle_memory_bytes,
            "inputs": self.inputs,
            "treatments": [
                {
                    "node": each.node,
                    "operator": each.operator,
                    "precision": each.precision,
                    "reason": each.reason,
                }
                for each in self.treatments
            ],
            **self.all_findings.to_dict(),
        }
        plain = _json_ready(document)
        assert isinstance(plain, dict)
        return plain


def _ratio(ratio: Ratio) -> dict[str, Any]:
    return {**dataclasses.asdict(ratio), "is_noise": ratio.is_noise}


def _pass(report: PassReport) -> dict[str, Any]:
    outcome = report.outcome
    reasons: dict[tuple[str, str], list[str]] = {}
    for refusal in outcome.refusals:
        reasons.setdefault((refusal.rule, refusal.reason), []).append(refusal.node)
    return {
        "name": report.name,
        "round": report.round,
        "modified": outcome.changed_model,
        "matched": dict(outcome.matched),
        "rewritten": dict(outcome.rewritten),
        "rule_seconds": dict(outcome.seconds),
        "refused": [
            {"rule": rule, "reason": reason, "count": len(nodes), "nodes": nodes[:_EXAMPLES]}
            for (rule, reason), nodes in reasons.items()
        ],
        **report.facts,
    }


def _json_ready(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(item) for item in value]
    return value
