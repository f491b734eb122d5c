"""What the report should show of a quantization: each product, and all that was tried."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

import numpy as np

from onnxopt.calibration import Histogram as Seen
from onnxopt.calibration import HistogramObserver, Observations
from onnxopt.findings import Findings, Histogram, Layer, Region, Search, Tried
from onnxopt.noise import LayerNoise
from onnxopt.regions import Product
from onnxopt.search import Finding, Point
from onnxopt.workbench import Workbench

from .observing import RangeChoice
from .plan import Mode, Plan

__all__ = ["tell"]

#: So many bins of a histogram are told of.
_BINS = 64
_METHOD: dict[RangeChoice, str] = {
    "min-max": "all that was seen",
    "consumers": "least error where it is read",
}
_PRECISION = {
    Mode.FLOAT: "float32",
    Mode.STATIC: "int8",
    Mode.STATIC_INPUT: "int8, float output",
    Mode.DYNAMIC: "int8, dynamic",
}


def tell(
    finding: Finding,
    found: Sequence[Product],
    bench: Workbench,
    noise: Sequence[LayerNoise],
    observations: Observations,
    choice: RangeChoice,
) -> Findings:
    """The sections of the report.

    Args:
        finding: What the search found.
        found: The products it was about.
        bench: Its goal and budget.
        noise: Of the layers of the result.
        observations: What calibration saw.
        choice: How ranges were chosen.
    """
    whole = _untouched_seconds(finding)
    return Findings(
        layers=[
            *(_layer(finding, product) for product in found),
            *_noisy(noise, found),
        ],
        histograms=list(_histograms(noise, observations, choice)),
        search=Search(
            tried=[_tried(point, finding, whole) for point in finding.curve],
            regions=[_region(finding, product) for product in found],
            goal=bench.goal,
            budget=_budget(bench),
        ),
    )


def _noisy(noise: Sequence[LayerNoise], found: Sequence[Product]) -> Iterator[Layer]:
    """What is known of the noise of layers; a product's is that of all that belongs to it."""
    by_value = {each.value: each for each in noise}
    told: set[str] = set()
    for product in found:
        values = [value.name or "" for value in (product.output, product.unclamped)]
        known = [by_value[name] for name in (*values, product.key) if name in by_value]
        if known:
            name = product.node.name or product.key
            yield Layer(name, sqnr_db=known[0].sqnr_db, reason=_why_noisy(known[0]))
            told.update(each.value for each in known)
    for each in noise:
        if each.value not in told and each.operator:
            yield Layer(
                each.layer,
                each.operator,
                precision="int8" if each.whole else None,
                sqnr_db=each.sqnr_db,
                reason=_why_noisy(each),
            )


def _why_noisy(each: LayerNoise) -> str:
    return f"noise: {each.reason}" if each.reason else ""


def _histograms(
    noise: Sequence[LayerNoise], observations: Observations, choice: RangeChoice
) -> Iterator[Histogram]:
    """How the values that are quantized are spread, with the range of their whole numbers."""
    for each in noise:
        known = observations.observers.get(each.value, {}).get(Seen())
        if not each.whole or not isinstance(known, HistogramObserver) or known.low > known.high:
            continue
        counts, edges = _in_bins(known)
        yield Histogram(each.value, counts, edges, each.low, each.high, _METHOD[choice])


def _in_bins(seen: HistogramObserver) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Counts in a few bins of equal width between the extremes."""
    low, high = seen.low, max(seen.high, seen.low + abs(seen.low) * 1e-6, seen.low + 1e-30)
    edges = np.linspace(low, high, _BINS + 1)
    fine, density = seen.density()
    below = np.concatenate([[0.0], np.cumsum(density * np.diff(fine))]) * seen.total
    counts = np.diff(np.interp(edges, fine, below))
    if low <= 0 <= high:
        counts[min(int(np.searchsorted(edges, 0.0, "right")) - 1, _BINS - 1)] += seen.zeros
    return tuple(int(count) for count in np.rint(counts)), tuple(
        float(f"{edge:.6g}") for edge in edges
    )


def _layer(finding: Finding, product: Product) -> Layer:
    mode = Plan.of(finding.choices).mode(product.key)
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
        smoothed = product.key in Plan.of(finding.choices).smoothed
        return f"faster in 8 bits{' with an even input' if smoothed else ''}, within the budget"
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
