"""A result that is written but not yet accepted, and how it is made."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

import onnx_ir as ir

from onnxopt.accuracy import Fidelity
from onnxopt.instruments.counts import count_ops
from onnxopt.model import (
    ExternalData,
    Interface,
    StagedModel,
    bytes_on_disk,
    restore_interface,
    stage,
)
from onnxopt.pass_contract import Kind, PassReport
from onnxopt.report.run import ModelFacts
from onnxopt.runtime.compare import Difference
from onnxopt.runtime.statistics import Ratio
from onnxopt.runtime.trial import Trial

__all__ = ["Candidate"]


@dataclasses.dataclass
class Candidate:
    """A result and what is known of it.

    Attributes:
        staged: Its files, beside the target.
        reports: What each pass did.
        facts: Its size and nodes.
        changed: Whether it is another model than the original.
        trial: What running it showed, if it ran.
        differences: How its outputs differ from the original's.
        lossy: Whether a lossy pass changed it, so that it is judged by the accuracy budget.
        fidelity: How true it is then.
        speed: How many times faster it is, if it was timed.
        samples: The times behind that, of the original and of this.
    """

    staged: StagedModel
    reports: list[PassReport]
    facts: ModelFacts
    changed: bool
    lossy: bool = False
    trial: Trial | None = None
    fidelity: Fidelity | None = None
    differences: list[Difference] = dataclasses.field(default_factory=list)
    speed: Ratio | None = None
    samples: list[list[float]] = dataclasses.field(default_factory=list)

    @classmethod
    def write(
        cls,
        model: ir.Model,
        reports: list[PassReport],
        interface: Interface,
        target: pathlib.Path,
        external_data: ExternalData,
    ) -> Candidate:
        """Write an optimized model beside its target.

        Raises:
            ModelError: When it cannot be written.
        """
        restore_interface(model, interface)
        staged = stage(model, target, external_data)
        ops = count_ops(model)
        facts = ModelFacts(staged.bytes, ops.total(), dict(ops))
        changed = any(report.outcome.changed_model for report in reports)
        lossy = any(
            report.kind is Kind.LOSSY and report.outcome.changed_model for report in reports
        )
        return cls(staged, reports, facts, changed, lossy)

    def commit(self, source: pathlib.Path) -> None:
        """Put the result in its place; an unchanged single-file model byte by byte.

        Raises:
            ModelError: When the files cannot be moved there.
        """
        files = list(self.staged.path.parent.iterdir())
        if not self.changed and len(files) == 1 and bytes_on_disk(source) == source.stat().st_size:
            shutil.copyfile(source, self.staged.path)
        self.staged.commit()

    def discard(self) -> None:
        """Remove what was written."""
        self.staged.discard()
