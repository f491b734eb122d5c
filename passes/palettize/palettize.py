"""The pass itself: which form each weight gets, and what that does to the outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxopt import findings
from onnxopt.findings import Search, Tried
from onnxopt.pass_contract import Kind, Outcome, Pass, Refusal
from onnxopt.samples import split

from ..sparsify.criteria import output_error
from ..sparsify.layers import OPERATORS, Layer, find_layers
from ..sparsify.trials import Trials
from .forms import FLOAT16, UNCHANGED, Form

__all__ = ["Palettize"]

_RULE = "weight"
#: What a search chooses from besides the weight as it is.
_FREE = tuple(Form(bits) for bits in (2, 3, 4, 5, 6, 8))
_EVEN = tuple(Form(bits, even=True) for bits in (2, 3, 4, 6, 8))
_SINGLE_SAMPLES, _WHOLE_SAMPLES = 4, 16
_ATTEMPTS = 5
_BISECTIONS = 60
#: What is aimed at above the budget, since other samples may come out worse.
_MARGIN_DB = 0.5
#: How much less noise is aimed at after a miss.
_STEP_DB = 2.0
#: What is aimed at when the budget names no signal-to-noise ratio.
_FIRST_DB = 20.0


@dataclasses.dataclass(frozen=True)
class _Options:
    """Options of `Palettize`.

    Attributes:
        bits: Bits of each number, 1 to 8, or 16 for float16; ``none`` for what keeps the accuracy
            budget in the fewest bytes, weight by weight.
        levels: ``free`` are any numbers, found by k-means; ``even`` are integers times a scale for
            each channel: int8, ternary with 2 bits, binary with 1. ``auto`` is free with bits
            stated, and whichever is shorter without.
        group: Channels that share a palette of free levels; 0 for all of them.
        min_elements: Smaller weights are left alone.
    """

    bits: int | None = 8
    levels: Literal["auto", "free", "even"] = "auto"
    group: int = 0
    min_elements: int = 1024

    def __post_init__(self) -> None:
        if self.bits is not None and self.bits not in (*range(1, 9), FLOAT16.bits):
            raise ValueError("bits are from 1 to 8, 16, or none")
        if self.group < 0 or self.min_elements < 0:
            raise ValueError("group and min-elements must not be negative")
        if self.group and self.levels == "even":
            raise ValueError("even levels have a scale for each channel, so group must be 0")

    @property
    def forms(self) -> tuple[Form, ...]:
        """What there is to choose from; a single one with bits stated."""
        if self.bits == FLOAT16.bits:
            return (FLOAT16,)
        if self.bits is not None:
            return (Form(self.bits, self.levels == "even", self.group),)
        free = tuple(dataclasses.replace(form, group=self.group) for form in _FREE)
        wanted = {"auto": free + _EVEN, "free": free, "even": _EVEN}[self.levels]
        return (*wanted, FLOAT16)


class Palettize(Pass):
    """Let each weight have few different numbers, so that `compact-weights` stores it small.

    Lossy. The numbers of a weight are gathered into 2 to 256 clusters (k-means), for the whole
    tensor or for each group of channels, and replaced by their means; or they are rounded to an
    even grid, small integers times a scale for each channel (8 bits are int8, 2 ternary weights, 1
    binary ones); or, with 16 bits, to float16. The weight stays a float32 tensor and the model runs
    as before: it is `compact-weights`, later in the pipeline, that writes palettes and indices,
    integers and scales, or float16 numbers. Zeros stay zeros, so it goes well after `sparsify`.

    With ``bits=none`` each weight is measured alone in each form, and those are taken that cost the
    fewest bytes for the noise that the budget allows.

    Left alone: quantized weights, biases and normalizations, weights that are read in different
    ways or can be fed, small ones, and types other than float32 and float64.
    """

    name = "palettize"
    kind = Kind.LOSSY
    Options: ClassVar[type] = _Options

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.needs_data = self.options.bits is None  # type: ignore[misc]

    def run(self, model: ir.Model) -> Outcome:
        """Palettize weights of the main graph and of the bodies in it."""
        outcome = Outcome(model, False)
        layers = self._layers(model, outcome)
        forms = dict.fromkeys(layers, self.options.forms[0])
        if self.options.bits is None and layers:
            forms, outcome.findings.search = self._within_budget(model, layers)
        for layer in layers:
            if self.max_rewrites is not None and outcome.rewritten.total() >= self.max_rewrites:
                break
            self._apply(layer, forms[layer], outcome)
        outcome.modified = bool(outcome.rewritten)
        return outcome

    def _layers(self, model: ir.Model, outcome: Outcome) -> list[Layer]:
        found, refused = find_layers(model, OPERATORS, self.options.min_elements)
        layers = []
        for layer in found:
            if layer.grid is not None:
                refused.append((layer.value, "it is quantized already"))
            elif layer.value.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
                refused.append((layer.value, "its type is narrow already"))
            elif self.options.levels == "even" and layer.value.dtype != ir.DataType.FLOAT:
                refused.append((layer.value, "scales are float32, and it is float64"))
            elif not np.isfinite(layer.matrix()).all():
                refused.append((layer.value, "it has numbers that are not finite"))
            else:
                layers.append(layer)
        outcome.matched[_RULE] += len(layers) + len(refused)
        outcome.refusals.extend(Refusal(_RULE, why, value.name or "") for value, why in refused)
        return layers

    def _apply(self, layer: Layer, form: Form, outcome: Outcome) -> None:
        if form == UNCHANGED:
            outcome.refusals.append(Refusal(_RULE, "fewer bits cost too much", layer.name))
            return
        before = layer.matrix()
        layer.value.const_value = form.applied(layer)
        after = layer.matrix()
        if np.array_equal(before, after):
            outcome.refusals.append(Refusal(_RULE, "it has so few numbers already", layer.name))
            return
        error = output_error(before, after, None)
        outcome.rewritten[str(form)] += 1
        outcome.findings.layers.extend(
            findings.Layer(
                node.name or node.outputs[0].name or "",
                node.op_type,
                precision=f"weights {form}" if form.even else f"{form.bits}-bit weights",
                sqnr_db=-20 * math.log10(error) if error > 0 else math.inf,
            )
            for node in layer.readers
        )

    def _within_budget(
        self, model: ir.Model, layers: Sequence[Layer]
    ) -> tuple[dict[Layer, Form], Search]:
        workbench = self.workbench
        assert workbench is not None
        _, measure = split(workbench.calibration)
        single = Trials(model, workbench, measure.first(_SINGLE_SAMPLES))
        key = (self.name, self.options, tuple(layer.name for layer in layers))
        if key not in workbench.memory:
            workbench.memory[key] = [dict(self._noises(layer, single)) for layer in layers]
        noises = dict(zip(layers, workbench.memory[key], strict=True))
        choices = (*self.options.forms, UNCHANGED)
        sizes = {layer: {form: form.nbytes(layer) for form in choices} for layer in layers}
        numbers = max(1, sum(np.count_nonzero(layer.matrix()) for layer in layers))
        budget, whole = workbench.budget, Trials(model, workbench, measure.first(_WHOLE_SAMPLES))
        aim = _FIRST_DB if budget.min_sqnr is None else budget.min_sqnr + _MARGIN_DB
        search = Search(goal="size")
        for _ in range(_ATTEMPTS):
            forms = _cheapest(noises, sizes, 10 ** (-aim / 10))
            kept = [(layer, layer.value.const_value) for layer in layers]
            for layer in layers:
                layer.value.const_value = forms[layer].applied(layer)
            found = whole.fidelity_to_source(score=True)
            for layer, tensor in kept:
                layer.value.const_value = tensor
            objection = budget.objection(found) or ""
            mean = 8 * sum(sizes[layer][forms[layer]] for layer in layers) / numbers
            search.tried.append(
                Tried(
                    f"{mean:.1f} bits a number that is not 0",
                    sqnr_db=found.sqnr_db,
                    within_budget=not objection,
                    chosen=not objection,
                    reason=objection,
                )
            )
            if not objection:
                return forms, search
            aim += _STEP_DB
        return dict.fromkeys(layers, UNCHANGED), search

    def _noises(self, layer: Layer, trials: Trials) -> Iterator[tuple[Form, float]]:
        """Noise power at the model's outputs by form."""
        assert self.workbench is not None
        self.workbench.on_step(f"measuring forms of {layer.name}")
        tensor = layer.value.const_value
        for form in self.options.forms:
            if form.even and layer.value.dtype != ir.DataType.FLOAT:
                continue
            layer.value.const_value = form.applied(layer)
            noise = trials.noise()
            layer.value.const_value = tensor
            yield form, noise


def _cheapest(
    noises: Mapping[Layer, Mapping[Form, float]],
    sizes: Mapping[Layer, Mapping[Form, float]],
    allowed: float,
) -> dict[Layer, Form]:
    """The forms with the fewest bytes whose noises add up to what is allowed."""

    def spread(log_price: float) -> dict[Layer, Form]:
        price = math.exp(log_price)

        def cost(layer: Layer, form: Form) -> float:
            return noises[layer].get(form, 0.0) + price * sizes[layer][form]

        return {
            layer: min((*noises[layer], UNCHANGED), key=lambda form: cost(layer, form))
            for layer in noises
        }

    low, high = -90.0, 0.0  # the higher the price of a byte, the more noise
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = spread(middle)
        noise = sum(noises[each].get(form, 0.0) for each, form in found.items())
        if noise > allowed:
            high = middle
        else:
            low = middle
    return spread(low)
