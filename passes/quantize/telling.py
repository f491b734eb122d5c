"""What the report should show of a quantization: each product, and all that was tried."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from onnxopt.findings import Findings, Layer, Region, Search, Tried
from onnxopt.regions import Product
from onnxopt.search import Finding, Point
from onnxopt.workbench import Workbench

from .plan import Mode

__all__ = ["tell"]

_PRECISION = {
    Mode.FLOAT: "float32",
    Mode.STATIC: "int8",
    Mode.STATIC_INPUT: "int8, float output",
    Mode.DYNAMIC: "int8, dynamic",
}


def tell(finding: Finding, found: Sequence[Product], bench: Workbench) -> Findings:
    """The sections of the report.

    Args:
        finding: What the search found.
        found: The products it was about.
        bench: Its goal and budget.
    """
    whole = _untouched_seconds(finding)
    return Findings(
        layers=[_layer(finding, product) for product in found],
        search=Search(
            tried=[_tried(point, finding, whole) for point in finding.curve],
            regions=[_region(finding, product) for product in found],
            goal=bench.goal,
            budget=_budget(bench),
        ),
    )


def _layer(finding: Finding, product: Product) -> Layer:
    mode = Mode(finding.choices.get(product.key, Mode.FLOAT))
    return Layer(
        product.node.name or product.key,
        product.node.op_type,
        precision=_PRECISION[mode],
        weight_bytes_before=4 * product.weights.size,
        weight_bytes=product.weights.size * (4 if mode is Mode.FLOAT else 1),
        reason=_reason(finding, product),
    )


def _region(finding: Finding, product: Product) -> Region:
    mode = finding.choices.get(product.key, "")
    noise = finding.noise.get((product.key, mode))
    return Region(
        product.key,
        tuple(node.name or node.outputs[0].name or "" for node in product.nodes),
        mode or Mode.FLOAT.value,
        _reason(finding, product),
        finding.seconds.get((product.key, "")),
        finding.seconds.get((product.key, mode)),
        -10 * math.log10(noise) if noise is not None and 0 < noise < math.inf else None,
    )


def _reason(finding: Finding, product: Product) -> str:
    if product.key in finding.choices:
        return "faster in 8 bits, within the budget"
    return finding.left.get(product.key, finding.reason)


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


def _budget(bench: Workbench) -> str:
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
