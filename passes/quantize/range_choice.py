"""Which way of choosing ranges suits a model, by its outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from onnxopt.accuracy import fidelity
from onnxopt.calibration import Observations
from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.regions import Product
from onnxopt.runtime.trial import try_model
from onnxopt.workbench import Workbench

from .numbers import Range
from .observing import RangeChoice, numbers_for, ranges_for
from .plan import Mode, Plan
from .trials import Workshop, modes_for

__all__ = ["Choice", "best_ranges", "wholly_quantized"]

#: Samples to judge by.
_PROBES = 8
_CHOICES: tuple[RangeChoice, ...] = ("min-max", "consumers")


@dataclasses.dataclass(frozen=True)
class Choice:
    """How ranges are chosen.

    Attributes:
        way: The way that was chosen.
        ranges: The ranges that come of it, by name of the tensor.
        decibels: How true the wholly quantized model is with them.
    """

    way: RangeChoice
    ranges: Mapping[str, Range]
    decibels: float


def wholly_quantized(found: Sequence[Product], allowed: Sequence[Mode]) -> Plan:
    """Every product in its preferred mode."""
    return Plan(
        {product.key: modes[0] for product in found if (modes := modes_for(product, allowed))}
    )


def best_ranges(
    observations: Observations,
    found: Sequence[Product],
    bench: Workbench,
    workshop: Workshop,
    allowed: Sequence[Mode],
) -> Choice:
    """The choice with which the wholly quantized model is truest.

    What is best for a tensor, or for the products that read it, need not be best for the outputs:
    numbers that are cut off seldom may be the ones that decide.
    """
    plan = wholly_quantized(found, allowed)
    ways = _CHOICES
    if bench.effort == "low" or not plan.keys(Mode.STATIC, Mode.STATIC_INPUT):
        ways = _CHOICES[:1]
    feeds = bench.calibration.first(_PROBES)
    with workshop.write(Plan({}), None) as path:
        reference = try_model(bench.worker, path, feeds, threads=bench.threads)
    names = [port.name for port in reference.info.outputs]

    def decibels(ranges: Mapping[str, Range]) -> float:
        numbers = numbers_for(observations, found, bench, ranges, "low")
        with workshop.write(plan, numbers) as path:
            try:
                trial = try_model(bench.worker, path, feeds, threads=bench.threads)
            except (RuntimeRefusalError, RuntimeCrashError):
                return -math.inf
        return fidelity(reference.outputs, trial.outputs, names).sqnr_db

    tried = []
    for number, way in enumerate(ways, start=1):
        bench.on_step(f"choosing ranges, way {number} of {len(ways)}")
        ranges = ranges_for(observations, found, bench, way)
        tried.append(Choice(way, ranges, decibels(ranges)))
    return max(tried, key=lambda each: each.decibels)
