"""What a pass is: its kind, its typed options, what it reports, and who may look on."""

from __future__ import annotations

import abc
import collections
import dataclasses
import enum
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from onnxopt.findings import Findings
from onnxopt.traversal import forget_nodes

if TYPE_CHECKING:
    from onnxopt.workbench import Workbench

__all__ = ["Instrument", "Kind", "NoOptions", "Outcome", "Pass", "PassReport", "Refusal"]


class Kind(enum.StrEnum):
    """What a pass does to the numbers."""

    #: The same numbers, up to floating-point reassociation.
    EXACT = "exact"
    #: Other numbers; needs an accuracy budget.
    LOSSY = "lossy"
    #: The same numbers in other bytes.
    STORAGE = "storage"


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a pass left something alone.

    Attributes:
        rule: The rule that looked at it.
        reason: One phrase, without names, so that refusals can be counted.
        node: Name of the node it would have started from.
    """

    rule: str
    reason: str
    node: str = ""


@dataclasses.dataclass
class Outcome(ir.passes.PassResult):
    """What a pass did.

    Attributes:
        matched: How often each rule found its pattern.
        rewritten: How often each rule changed the model.
        refusals: Each place that was left alone, with the reason.
        seconds: Time by rule, where the pass measures it.
        annotates: Whether the pass only found out facts about values; the model is the same then,
            though other passes may make something of it.
        findings: What the report should show beside the counters: layers, ranges, what was tried.
    """

    matched: Counter[str] = dataclasses.field(default_factory=Counter)
    rewritten: Counter[str] = dataclasses.field(default_factory=Counter)
    refusals: list[Refusal] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )
    annotates: bool = False
    findings: Findings = dataclasses.field(default_factory=Findings)

    @property
    def changed_model(self) -> bool:
        """Whether the model is another one now."""
        return self.modified and not self.annotates


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The options of a pass that has none."""


class Pass(ir.passes.InPlacePass):
    """A pass of onnxopt; also a pass of onnx_ir, so it can be used wherever those are.

    A subclass sets `name` and implements `run`. Its docstring says what it rewrites, the maths,
    when it is exact, and what it leaves alone. It works on all graphs of the model (bodies of
    control flow and functions too) or says that it does not.

    Attributes:
        name: Name in pipelines, in kebab-case.
        kind: What it does to the numbers.
        Options: A frozen dataclass of typed options, all with defaults.
        needs_data: Whether it cannot work without samples of the user's.
        raises_opset: Whether it may raise opset versions and import domains, where what it puts in
            needs that.
        prepares_for: Name of the pass that makes use of what this one does; without a change by
            that pass, this one is left out. Empty for most.
        settles: Whether one run leaves the pass nothing to do until something else changes the
            model. If not, it runs again in the next round.
        max_rewrites: Stop after so many rewrites; how `bisect` finds the one that breaks a model.
        workbench: Samples, budget and a place to run models, set by the pass manager where there
            are any. Exact passes do without.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind] = Kind.EXACT
    settles: ClassVar[bool] = True
    needs_data: ClassVar[bool] = False
    prepares_for: ClassVar[str] = ""
    raises_opset: ClassVar[bool] = False
    Options: ClassVar[type] = NoOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__()
        self.options = self.Options() if options is None else options
        self.max_rewrites: int | None = None
        self.workbench: Workbench | None = None

    @abc.abstractmethod
    def run(self, model: ir.Model) -> Outcome:
        """Rewrite the model in place and say what was done."""

    def call(self, model: ir.Model) -> Outcome:
        """Run as a pass of onnx_ir."""
        try:
            outcome = self.run(model)
        except BaseException:
            forget_nodes(model)
            raise
        if outcome.changed_model:
            forget_nodes(model)
        return outcome

    def thrifty(self) -> Pass | None:
        """The same pass with options that add fewer bytes, for a file that this one makes larger.

        None when there are none, or these are those.
        """
        return None

    def careful(self) -> Pass | None:
        """The same pass with options that are easier on kernels, for a result that is slower.

        None when there are none, or these are those.
        """
        return None

    @property
    def text(self) -> str:
        """The pass as it stands in a pipeline, with the options that differ from the default."""
        default = self.Options()
        given = [
            f"{field.name.replace('_', '-')}={_format(getattr(self.options, field.name))}"
            for field in dataclasses.fields(self.options)
            if getattr(self.options, field.name) != getattr(default, field.name)
        ]
        return self.name + (f"{{{','.join(given)}}}" if given else "")


@dataclasses.dataclass
class PassReport:
    """What one run of one pass did.

    Attributes:
        name: The pass.
        round: The round of the pipeline, from 0.
        outcome: Its counters and refusals.
        facts: What instruments measured (seconds, nodes, bytes), by their key.
        kind: What the pass does to the numbers.
    """

    name: str
    round: int
    outcome: Outcome
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    kind: Kind = Kind.EXACT


class Instrument:
    """Looks on while passes run. Override what you need.

    An instrument may raise `OnnxoptError` from `after_pass` to say that the pass must not stand.
    """

    def should_run(self, pass_: Pass, model: ir.Model) -> bool:
        """Return False to have this pass skipped."""
        return True

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Look at the model just before a pass."""

    def after_pass(self, pass_: Pass, model: ir.Model, report: PassReport) -> None:
        """Look at what a pass did."""

    def pass_failed(self, pass_: Pass, model: ir.Model, error: Exception) -> None:
        """Look at a model that a pass left half-way."""


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "|".join(_format(item) for item in value)
    return str(value.value) if isinstance(value, enum.Enum) else str(value)
