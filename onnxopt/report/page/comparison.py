"""Two runs beside each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnxopt.report.formats import (
    bytes_text,
    decibels_text,
    latency_text,
    percent_text,
    ratio_text,
    seconds_text,
)
from onnxopt.report.page.compared_training import (
    compared_stages,
    compressed_rows,
    distilled_rows,
)
from onnxopt.report.page.layer_table import compared_layers
from onnxopt.report.page.tables import Table
from onnxopt.runtime.statistics import Latency, Ratio

__all__ = ["Comparison", "compare"]

_Facts = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the page shows of two runs together.

    Attributes:
        rows: What was measured of both results: name, in A, in B, from A to B.
        settings: What differs in how they came about: name, in A, in B.
        layers: Layers of the same name.
        warning: What forbids to compare them in full.
        stages: Stations of the same name, of two compressions.
    """

    rows: list[tuple[str, ...]]
    settings: list[tuple[str, str, str]]
    layers: Table | None
    warning: str = ""
    stages: Table | None = None


def compare(documents: Sequence[_Facts], room: int) -> Comparison:
    """Hold two reports against each other, as far as they are of one kind."""
    first, second = documents
    settings = list(_settings(first, second))
    warning = _warning(first, second)
    match first["kind"], second["kind"]:
        case "optimize", "optimize":
            layers = compared_layers(
                "compared-layers", first.get("layers", []), second.get("layers", []), room
            )
            return Comparison(list(_rows(first, second)), settings, layers, warning)
        case "compress", "compress":
            rows = list(compressed_rows(first, second))
            stages = compared_stages(first, second)
            return Comparison(rows, settings, None, warning, stages)
        case "distill", "distill":
            return Comparison(list(distilled_rows(first, second)), settings, None)
    return Comparison([], settings, None)


def _rows(first: _Facts, second: _Facts) -> Iterator[tuple[str, ...]]:
    one, other = first["after"], second["after"]
    if first.get("speed") and second.get("speed"):
        speeds = [_ratio(each["speed"]) for each in (first, second)]
        yield "speed against its original", *map(ratio_text, speeds), _overlap(*speeds)
    if one.get("latency") and other.get("latency"):
        times = [Latency(**each["latency"]) for each in (one, other)]
        change = percent_text(times[0].median, times[1].median)
        yield "latency of one run", *map(latency_text, times), change
    for label, field, text in (
        ("file size", "bytes", bytes_text),
        ("load time", "load_seconds", seconds_text),
        ("peak memory", "peak_memory_bytes", bytes_text),
        ("nodes", "nodes", "{:,}".format),
    ):
        a, b = one.get(field), other.get(field)
        if a is not None and b is not None:
            yield label, text(a), text(b), percent_text(a, b)
    faiths = first.get("fidelity"), second.get("fidelity")
    if any(each is not None for each in faiths):
        yield "signal to noise, worst output", *(_noise(each) for each in faiths), ""
        yield "decisions the same", *(_decisions(each) for each in faiths), ""
    undone = [
        ", ".join(each["name"] for each in run["undone"]) or "none" for run in (first, second)
    ]
    if undone != ["none", "none"]:
        yield "undone", *undone, ""


def _ratio(facts: _Facts) -> Ratio:
    return Ratio(facts["median"], facts["low"], facts["high"])


def _overlap(one: Ratio, other: Ratio) -> str:
    """Whether two speeds differ by more than their intervals allow for."""
    if one.low <= other.high and other.low <= one.high:
        return "within noise"
    return f"{other.median / one.median:.2f}x"


def _noise(fidelity: _Facts | None) -> str:
    return "exact passes only" if fidelity is None else decibels_text(fidelity["sqnr_db"])


def _decisions(fidelity: _Facts | None) -> str:
    agreement = None if fidelity is None else fidelity.get("agreement")
    return "" if agreement is None else f"{agreement['fraction']:.1%}"


def _settings(first: _Facts, second: _Facts) -> Iterator[tuple[str, str, str]]:
    """What differs in how the two came about."""
    for field in ("command", "source", "teacher", "student", "pipeline"):
        a, b = str(first.get(field, "")), str(second.get(field, ""))
        if a != b:
            yield field, a, b
    machines = first.get("environment") or {}, second.get("environment") or {}
    for field in ("processor", "instruction_sets", "cores", "threads", "platform", "python"):
        a, b = (_plain(machine.get(field)) for machine in machines)
        if a != b:
            yield field, a, b
    versions = [machine.get("versions", {}) for machine in machines]
    for name in {**versions[0], **versions[1]}:
        a, b = (str(each.get(name)) for each in versions)
        if a != b:
            yield name, a, b


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _warning(first: _Facts, second: _Facts) -> str:
    """Why times of the two may not be held against each other."""
    machines = [
        [(each.get("environment") or {}).get(field) for field in ("processor", "threads")]
        for each in (first, second)
    ]
    if machines[0] != machines[1]:
        return (
            "The two ran on different machines or with different threads: compare the speeds "
            "against each one's own original, not the times."
        )
    if first.get("inputs") != second.get("inputs"):
        return "The two were timed on inputs of different shapes: times cannot be compared."
    return "The two were not timed in turn: only a difference beyond the spread means anything."
