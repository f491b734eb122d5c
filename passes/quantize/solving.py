"""From a float model to the plan that is best for it, and the numbers to carry it out with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.calibration import Observations
from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.findings import Findings
from onnxopt.noise import LayerNoise, layer_noise
from onnxopt.regions import Product, Recurrence, products, recurrences
from onnxopt.runtime.hardware import resolve_target
from onnxopt.runtime.statistics import undisturbed
from onnxopt.runtime.trial import race
from onnxopt.search import Finding, search
from onnxopt.workbench import Workbench

from .lowering import lower
from .numbers import Numbers
from .observing import numbers_for, observations_for, sizes_of
from .plan import Mode, Plan
from .range_choice import Choice, best_ranges, wholly_quantized
from .recurrent import quantize_recurrence
from .smoothing import divided_inputs, evened, free_factors, smoothing_sites
from .telling import tell
from .trials import Trials, Workshop, name_nodes

__all__ = ["Solution", "solve"]

#: So many samples tell how noisy each layer is.
_LOOKED_AT = 4
#: Evened activations have to be truer by so many decibels, in the outputs of the model.
_TRUER = 0.5
#: A quantized model that takes so many times as long is slower.
_SLOWER = 1.02

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Solution:
    """A plan and what it is carried out with.

    Attributes:
        plan: What becomes of each product.
        numbers: Ranges, weights and biases.
        finding: What the search found.
        findings: What there is to tell.
        factors: What activations are divided by first, by name; see `evened`.
    """

    plan: Plan
    numbers: Numbers
    finding: Finding
    findings: Findings
    factors: Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class _Ground:
    """A float model that could be quantized, and what is known of it."""

    model: ir.Model
    found: list[Product]
    observations: Observations
    workshop: Workshop
    choice: Choice
    factors: Mapping[str, Array]


def solve(
    model: ir.Model,
    found: list[Product],
    recurrent: Set[str],
    allowed: Sequence[Mode],
    bench: Workbench,
    *,
    smooth: bool = True,
) -> Solution:
    """Find the best plan.

    Where activations can be evened out at no cost, the model with that and the one without are held
    against each other, both wholly quantized. Where one is truer and the other faster, the search
    is made for both, and the faster result is taken.

    Args:
        model: The float model, with element types. Nodes without a name get one.
        found: Its products that may be quantized.
        recurrent: Keys of its recurrent layers that may be.
        allowed: Modes to choose from, the preferred ones first.
        bench: Samples, budget, and a place to run models.
        smooth: Whether channels of activations may be evened out.
    """
    name_nodes(model)
    with contextlib.ExitStack() as stack:
        grounds = list(_grounds(model, found, allowed, bench, stack, smooth=smooth))
        solutions = [
            _searched(ground, recurrent, allowed, bench, smooth=smooth)
            for ground in _promising(grounds, allowed, bench)
        ]
    return max(solutions, key=_speed)


def _grounds(
    model: ir.Model,
    found: list[Product],
    allowed: Sequence[Mode],
    bench: Workbench,
    stack: contextlib.ExitStack,
    *,
    smooth: bool,
) -> Iterator[_Ground]:
    """The model as it is, and with activations evened out, where anything comes of that."""
    plain = _ground(model, found, allowed, bench, stack, {}, smooth=smooth)
    yield plain
    sites = smoothing_sites(model) if smooth else []
    factors = free_factors(sites, plain.observations)
    even = model.clone()
    if factors and evened(even, factors):
        keys = {product.key for product in found}
        again = [
            each for each in products(even.graph) if isinstance(each, Product) and each.key in keys
        ]
        yield _ground(even, again, allowed, bench, stack, factors, smooth=smooth)


def _ground(
    model: ir.Model,
    found: list[Product],
    allowed: Sequence[Mode],
    bench: Workbench,
    stack: contextlib.ExitStack,
    factors: Mapping[str, Array],
    *,
    smooth: bool,
) -> _Ground:
    sites = smoothing_sites(model) if smooth else []
    observations = observations_for(model, found, sites, bench)
    workshop = stack.enter_context(Workshop(model))
    choice = best_ranges(observations, found, bench, workshop, allowed)
    return _Ground(model, found, observations, workshop, choice, factors)


def _promising(grounds: list[_Ground], allowed: Sequence[Mode], bench: Workbench) -> list[_Ground]:
    """Those that the best result may come of."""
    if len(grounds) == 1:
        return grounds
    plain, even = grounds
    if even.choice.decibels < plain.choice.decibels + _TRUER:
        return [plain]
    bench.on_step("comparing models with even activations")
    with contextlib.ExitStack() as stack:
        paths = [
            stack.enter_context(
                ground.workshop.write(
                    wholly_quantized(ground.found, allowed),
                    numbers_for(
                        ground.observations, ground.found, bench, ground.choice.ranges, "low"
                    ),
                )
            )
            for ground in grounds
        ]
        (feed,) = bench.calibration.first(1)
        times = race(bench.worker, paths, feed, threads=bench.threads, seconds=bench.seconds)
    slower = undisturbed(times[1]) > _SLOWER * undisturbed(times[0])
    return grounds if slower else [even]


def _searched(
    ground: _Ground,
    recurrent: Set[str],
    allowed: Sequence[Mode],
    bench: Workbench,
    *,
    smooth: bool,
) -> Solution:
    model, found, observations = ground.model, ground.found, ground.observations
    sites = smoothing_sites(model) if smooth else []
    divided = divided_inputs(sites, found, observations)
    ranges = ground.choice.ranges
    numbers = numbers_for(observations, found, bench, ranges, bench.effort, divided)
    layers = [
        each
        for each in recurrences(model.graph)
        if isinstance(each, Recurrence) and each.key in recurrent
    ]
    limit = resolve_target(bench.target).pair_limit
    rounded = {each.key: quantize_recurrence(each, limit) for each in layers}
    numbers = dataclasses.replace(numbers, recurrent=rounded)
    sizes = sizes_of(observations)
    trials = Trials(ground.workshop, model, found, numbers, allowed, sizes, layers)
    finding = search(trials, bench)
    plan = Plan.of(finding.choices)
    noise = _noise(model, plan, numbers, bench)
    findings = tell(finding, [*found, *layers], bench, noise, observations, ground.choice.way)
    return Solution(plan, numbers, finding, findings, ground.factors)


def _speed(solution: Solution) -> float:
    speed = solution.finding.speed
    if not solution.plan.quantizes or speed is None:
        return 0.0
    return speed.median


def _noise(model: ir.Model, plan: Plan, numbers: Numbers, bench: Workbench) -> list[LayerNoise]:
    """Signal to noise of each layer under a plan, on a few samples that were kept back."""
    if not plan.quantizes:
        return []
    bench.on_step("measuring the noise of layers")
    quantized = model.clone()
    lower(quantized, plan, numbers)
    try:
        return layer_noise(
            model,
            quantized,
            bench.held_out.first(_LOOKED_AT),
            worker=bench.worker,
            threads=bench.threads,
            on_step=bench.on_step,
        )
    except (RuntimeRefusalError, RuntimeCrashError):
        return []  # what is only to be told must not cost the result
