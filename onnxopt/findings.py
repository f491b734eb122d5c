"""What passes, searches and training have to tell beside counters; the sections of a run's report.

Whoever finds something out appends to `Findings`: a pass to its outcome's, a search or a longer
road to its run report's. `Findings.to_dict` gives the sections of the report's JSON, from which
the page is made. A section that nobody filled is not there, nor is a field that nobody knew; in
JSON, null stands for an infinite number of decibels: no noise at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

__all__ = [
    "Curve",
    "Findings",
    "Histogram",
    "Layer",
    "Region",
    "Search",
    "Stage",
    "Treatment",
    "Tried",
]


@dataclasses.dataclass(frozen=True)
class Layer:
    """What is known of one node of the result, or of one that is gone.

    Several may each tell a part: what they say of the same name is put together, a later one's
    field before an earlier one's, and reasons one after the other. Time, bytes and precision of
    what runs are found by the optimizer; what a pass says goes before that.

    Attributes:
        name: Name of the node; of its first output where it has none.
        operator: Its operator.
        kernel: What ONNX Runtime runs for it.
        seconds: Time in one run.
        seconds_before: Time that what it stands for took in the original.
        precision: What it computes in, such as ``float32``, ``int8`` or ``int8 weights``.
        sqnr_db: Signal-to-noise ratio of its output against the original's, in dB.
        weight_bytes: Bytes of the weights it reads, as stored.
        weight_bytes_before: The same in the original.
        zeros: Share of its weights that are zero, from 0 to 1.
        channels: Output channels that it has.
        channels_removed: Output channels that were taken out.
        macs: Multiply-accumulates in one run.
        reason: Why it is treated as it is, one phrase.
    """

    name: str
    operator: str = ""
    kernel: str = ""
    seconds: float | None = None
    seconds_before: float | None = None
    precision: str | None = None
    sqnr_db: float | None = None
    weight_bytes: int | None = None
    weight_bytes_before: int | None = None
    zeros: float | None = None
    channels: int | None = None
    channels_removed: int | None = None
    macs: int | None = None
    reason: str = ""

    def joined(self, later: Layer) -> Layer:
        """This and what was said later of the same layer."""
        known = {
            field.name: value
            for field in dataclasses.fields(later)
            if (value := getattr(later, field.name)) not in (None, "")
        }
        reasons = [
            each for text in (self.reason, later.reason) for each in text.split("; ") if each
        ]
        known["reason"] = "; ".join(dict.fromkeys(reasons))
        return dataclasses.replace(self, **known)


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How the values of a tensor are spread, and the range that was chosen for it.

    Attributes:
        tensor: Its name.
        counts: Values in each bin.
        edges: Where bins begin and end; one more than counts, ascending.
        low: Lower end of the range that is kept, if one was chosen.
        high: Its upper end.
        method: How it was chosen, such as ``percentile 99.99``.
        kind: Whose values: of an activation over all samples, or of a weight.
    """

    tensor: str
    counts: tuple[int, ...]
    edges: tuple[float, ...]
    low: float | None = None
    high: float | None = None
    method: str = ""
    kind: Literal["activation", "weight"] = "activation"

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(
                f"histogram of '{self.tensor}': {len(self.counts)} counts need "
                f"{len(self.counts) + 1} edges, not {len(self.edges)}"
            )


@dataclasses.dataclass(frozen=True)
class Tried:
    """A model that a search made and measured.

    Attributes:
        label: What it is, such as ``int8 but for 3 regions``.
        speed: How many times faster than the original it is, or is expected to be.
        speed_low: Lower end of that number's interval.
        speed_high: Its upper end.
        measured: Whether the speed was measured in whole, or added up from parts.
        sqnr_db: Signal-to-noise ratio of its worst output, in dB.
        agreement: Share of equal decisions, from 0 to 1.
        score: What the user's own measure gave.
        bytes: Size of its file.
        within_budget: Whether it costs no more accuracy than the user allows.
        chosen: Whether it became the result.
        treatments: Treatment by region, of those that are not left as they were.
        reason: Why it was taken or left.
    """

    label: str
    speed: float | None = None
    speed_low: float | None = None
    speed_high: float | None = None
    measured: bool = True
    sqnr_db: float | None = None
    agreement: float | None = None
    score: float | None = None
    bytes: int | None = None
    within_budget: bool | None = None
    chosen: bool = False
    treatments: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Region:
    """A part of the model that a search treats as one.

    Attributes:
        name: What it is called.
        nodes: Its nodes.
        treatment: What was chosen for it.
        reason: Why.
        seconds_before: Its time in one run of the original.
        seconds: Its time with the treatment.
        sqnr_db: The model's signal-to-noise ratio with this region alone treated, in dB.
    """

    name: str
    nodes: tuple[str, ...] = ()
    treatment: str = ""
    reason: str = ""
    seconds_before: float | None = None
    seconds: float | None = None
    sqnr_db: float | None = None


@dataclasses.dataclass
class Search:
    """What was tried to find the best model within the budget.

    Attributes:
        tried: Every model, in the order in which they were made.
        regions: The parts that decisions were made for.
        goal: What was to be gained: ``latency``, ``size`` or ``balanced``.
        budget: What it could cost, as a phrase.
    """

    tried: list[Tried] = dataclasses.field(default_factory=list)
    regions: list[Region] = dataclasses.field(default_factory=list)
    goal: str = ""
    budget: str = ""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A station of a longer road, such as prune, distill, fold, quantize, encode.

    Attributes:
        name: What was done.
        kept: Whether its result was taken over.
        seconds: How long it took.
        bytes: Size of the model after it.
        latency_seconds: Median time of one run after it.
        speed: How many times faster than the original the model is after it.
        sqnr_db: Signal-to-noise ratio against the original after it, in dB.
        agreement: Share of decisions equal to the original's.
        score: What the user's own measure gives after it.
        zeros: Share of the parameters that are zero after it, from 0 to 1.
        reason: Why it was taken or left.
    """

    name: str
    kept: bool = True
    seconds: float | None = None
    bytes: int | None = None
    latency_seconds: float | None = None
    speed: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    score: float | None = None
    zeros: float | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Curve:
    """A quantity that was followed while something went on, such as the loss of a training.

    Attributes:
        name: What it is; curves of the same plot and unit are drawn into one picture.
        x: Where it was looked at, ascending.
        y: What it was there.
        plot: Title of the picture.
        x_label: What x counts, such as ``step``.
        unit: Unit of y; empty for plain numbers.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    plot: str = "Training"
    x_label: str = "step"
    unit: str = ""

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"curve '{self.name}': {len(self.x)} x but {len(self.y)} y")


@dataclasses.dataclass(frozen=True)
class Treatment:
    """How a node is computed, and why so.

    Attributes:
        node: Its name; its first output where it has none.
        operator: Its operator.
        precision: What it is computed in, such as ``int8`` or ``float``; empty for a node that is
            not computed at all any more.
        reason: Why, one phrase.
        outputs: Names of what it gives, by which it is found again in an earlier graph.
    """

    node: str
    operator: str
    precision: str
    reason: str
    outputs: tuple[str, ...] = ()


@dataclasses.dataclass
class Findings:
    """What was found out, by section.

    Attributes:
        layers: Facts on nodes; several on the same name are put together.
        histograms: Tensors and the ranges chosen for them; the last on a name counts.
        search: What was tried.
        stages: Stations of a longer road, in order.
        curves: What was followed over time.
        treatments: How every node of the graph that a pass was given is computed. A report tells of
            the nodes of the original instead (`onnxopt.fates`).
    """

    layers: list[Layer] = dataclasses.field(default_factory=list)
    histograms: list[Histogram] = dataclasses.field(default_factory=list)
    search: Search | None = None
    stages: list[Stage] = dataclasses.field(default_factory=list)
    curves: list[Curve] = dataclasses.field(default_factory=list)
    treatments: list[Treatment] = dataclasses.field(default_factory=list)

    @classmethod
    def together(cls, parts: Iterable[Findings]) -> Findings:
        """All of several, in order; of two searches the later counts."""
        whole = cls()
        for part in parts:
            whole.layers.extend(part.layers)
            whole.histograms.extend(part.histograms)
            whole.search = part.search or whole.search
            whole.stages.extend(part.stages)
            whole.curves.extend(part.curves)
            whole.treatments.extend(part.treatments)
        return whole

    def to_dict(self) -> dict[str, Any]:
        """The sections that have something in them, as plain data; decibels may be infinite."""
        layers: dict[str, Layer] = {}
        for layer in self.layers:
            known = layers.get(layer.name)
            layers[layer.name] = layer if known is None else known.joined(layer)
        histograms = {each.tensor: each for each in self.histograms}
        sections: dict[str, Any] = {
            "layers": [_known(each) for each in layers.values()],
            "histograms": [_known(each) for each in histograms.values()],
            "stages": [_known(each) for each in self.stages],
            "curves": [_known(each) for each in self.curves],
        }
        if self.search is not None:
            sections["search"] = {
                "goal": self.search.goal,
                "budget": self.search.budget,
                "tried": [_known(each) for each in self.search.tried],
                "regions": [_known(each) for each in self.search.regions],
            }
        return {name: section for name, section in sections.items() if section}


def _known(record: Any) -> dict[str, Any]:
    """The fields that are known."""
    return {
        field.name: value
        for field in dataclasses.fields(record)
        if (value := getattr(record, field.name)) not in (None, "")
    }
