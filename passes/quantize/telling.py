"""What the report should show of a quantization: each product, and all that was tried."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from onnxopt.calibration import Histogram as Seen
from onnxopt.calibration import HistogramObserver, Observations
from onnxopt.findings import Findings, Histogram, Layer, Region, Search
from onnxopt.noise import LayerNoise
from onnxopt.regions import Product, Recurrence
from onnxopt.runtime.hardware import resolve_target
from onnxopt.search import Finding
from onnxopt.workbench import Workbench

from ..shared.search_findings import budget_text, tried_plans
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
    found: Sequence[Product | Recurrence],
    bench: Workbench,
    noise: Sequence[LayerNoise],
    observations: Observations,
    choice: RangeChoice,
) -> Findings:
    """The sections of the report.

    Args:
        finding: What the search found.
        found: The products and recurrent layers it was about.
        bench: Its goal and budget.
        noise: Of the layers of the result.
        observations: What calibration saw.
        choice: How ranges were chosen.
    """
    return Findings(
        layers=[
            *(_layer(finding, product, bench) for product in found),
            *_noisy(noise, [each for each in found if isinstance(each, Product)]),
        ],
        histograms=list(_histograms(noise, observations, choice)),
        search=Search(
            tried=list(tried_plans(finding)),
            regions=[_region(finding, product) for product in found],
            goal=bench.goal,
            budget=budget_text(bench),
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


def _layer(finding: Finding, product: Product | Recurrence, bench: Workbench) -> Layer:
    mode = Plan.of(finding.choices).mode(product.key)
    precision = _PRECISION[mode]
    if resolve_target(bench.target).activation_bits == 16:
        precision = precision.replace("int8", "int16 × int8")
    return Layer(
        product.node.name or product.key,
        product.node.op_type,
        precision=precision,
        weight_bytes_before=4 * product.weight_count,
        weight_bytes=product.weight_count * (4 if mode is Mode.FLOAT else 1),
        reason=_reason(finding, product),
    )


def _region(finding: Finding, product: Product | Recurrence) -> Region:
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


def _reason(finding: Finding, product: Product | Recurrence) -> str:
    if product.key in finding.choices:
        smoothed = product.key in Plan.of(finding.choices).smoothed
        return f"faster in 8 bits{' with an even input' if smoothed else ''}, within the budget"
    return finding.left.get(product.key, finding.reason)
