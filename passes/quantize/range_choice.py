"""Which way of choosing ranges suits a model, by its outputs."""

from __future__ import annotations

from collections.abc import Sequence

from onnxopt.accuracy import fidelity
from onnxopt.calibration import Observations
from onnxopt.regions import Product
from onnxopt.runtime.trial import try_model
from onnxopt.workbench import Workbench

from .observing import RangeChoice, numbers_for
from .plan import Mode, Plan
from .trials import Workshop, modes_for

__all__ = ["best_ranges"]

#: Samples to judge by.
_PROBES = 8
_CHOICES: tuple[RangeChoice, ...] = ("min-max", "consumers")


def best_ranges(
    observations: Observations,
    found: Sequence[Product],
    bench: Workbench,
    workshop: Workshop,
    allowed: Sequence[Mode],
) -> RangeChoice:
    """The choice with which the wholly quantized model is truest.

    What is best for a tensor, or for the products that read it, need not be best for the outputs:
    numbers that are cut off seldom may be the ones that decide.
    """
    plan = Plan(
        {product.key: modes[0] for product in found if (modes := modes_for(product, allowed))}
    )
    if bench.effort == "low" or not plan.keys(Mode.STATIC, Mode.STATIC_INPUT):
        return _CHOICES[0]
    bench.on_step("choosing ranges")
    feeds = bench.calibration.first(_PROBES)
    with workshop.write(Plan({}), None) as path:
        reference = try_model(bench.worker, path, feeds, threads=bench.threads)
    names = [port.name for port in reference.info.outputs]

    def decibels(choice: RangeChoice) -> float:
        numbers = numbers_for(observations, found, bench, choice, "low")
        with workshop.write(plan, numbers) as path:
            trial = try_model(bench.worker, path, feeds, threads=bench.threads)
        return fidelity(reference.outputs, trial.outputs, names).sqnr_db

    return max(_CHOICES, key=decibels)
