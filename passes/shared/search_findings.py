"""What the report should show of a search: every plan that was tried, and the budget."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from onnxopt.findings import Tried
from onnxopt.search import Finding, Point
from onnxopt.workbench import Workbench

__all__ = ["budget_text", "tried_plans"]


def tried_plans(finding: Finding) -> Iterator[Tried]:
    """All plans that were tried, with the speed that they had or should have."""
    whole = _untouched_seconds(finding)
    for point in finding.curve:
        yield _tried(point, finding, whole)


def budget_text(bench: Workbench) -> str:
    """The budget as a phrase."""
    budget = bench.budget
    parts = []
    if budget.min_sqnr is not None:
        parts.append(f"at least {budget.min_sqnr:g} dB")
    if budget.min_agreement is not None:
        parts.append(f"{budget.min_agreement:.1%} of decisions the same")
    if budget.min_cosine is not None:
        parts.append(f"a cosine of at least {budget.min_cosine:g}")
    if budget.evaluate is not None:
        parts.append(f"an evaluation at most {budget.max_drop:g} lower")
    return ", ".join(parts)


def _saved(point: Point, finding: Finding) -> float:
    """Seconds that the plan's regions save, each by itself."""
    return sum(finding.gain.get(choice, 0.0) for choice in point.choices.items())


def _untouched_seconds(finding: Finding) -> float:
    """Time of a run of the untouched model, as the plans that were timed tell; else its regions'.

    A plan that saves g of t seconds is t / (t - g) times as fast.
    """
    told = [
        _saved(point, finding) * point.speed.median / (point.speed.median - 1)
        for point in finding.curve
        if point.speed is not None and point.speed.median > 1 and _saved(point, finding) > 0
    ]
    if told:
        return statistics.median(told)
    return sum(seconds for (_, kind), seconds in finding.seconds.items() if not kind)


def _expected(point: Point, finding: Finding, whole: float) -> float | None:
    """How many times faster a plan that was not timed should be."""
    saved = _saved(point, finding)
    return whole / (whole - saved) if 0 <= saved < 0.9 * whole else None


def _tried(point: Point, finding: Finding, whole: float) -> Tried:
    counts: dict[str, int] = {}
    for kind in point.choices.values():
        counts[kind] = counts.get(kind, 0) + 1
    label = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "all float"
    return Tried(
        label,
        speed=_expected(point, finding, whole) if point.speed is None else point.speed.median,
        speed_low=None if point.speed is None else point.speed.low,
        speed_high=None if point.speed is None else point.speed.high,
        measured=point.speed is not None,
        sqnr_db=point.sqnr_db,
        agreement=point.agreement,
        score=point.score,
        within_budget=not point.objection,
        chosen=point.speed is not None and dict(point.choices) == finding.choices,
        treatments=point.choices,
        reason=point.objection,
    )
