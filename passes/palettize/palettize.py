"""The pass itself: how many bits each weight gets, and what that does to the outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt import findings
from onnxopt.findings import Search, Tried
from onnxopt.pass_contract import Kind, Outcome, Pass, Refusal
from onnxopt.samples import split

from ..sparsify.criteria import output_error
from ..sparsify.layers import OPERATORS, Layer, find_layers
from ..sparsify.trials import Trials
from .clusters import clustered

__all__ = ["Palettize"]

Array = np.ndarray[Any, Any]

_RULE = "weight"
_FLOAT16_BITS = 16
#: What a search chooses from; 32 is the weight as it is.
_CHOICES = (2, 3, 4, 5, 6, 8, _FLOAT16_BITS)
_DENSE_BITS = 32
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
        bits: Bits of each index, 1 to 8, or 16 for float16 numbers and no palette; ``none`` for
            what keeps the accuracy budget in the fewest bytes, weight by weight.
        min_elements: Smaller weights are left alone.
    """

    bits: int | None = 8
    min_elements: int = 1024

    def __post_init__(self) -> None:
        if self.bits is not None and self.bits not in (*range(1, 9), _FLOAT16_BITS):
            raise ValueError("bits are from 1 to 8, 16, or none")
        if self.min_elements < 0:
            raise ValueError("min-elements must not be negative")


class Palettize(Pass):
    """Let each weight have few different numbers, so that `compact-weights` stores it small.

    Lossy. The numbers of a weight are gathered into 2 to 256 clusters (k-means) and replaced by
    their means; with 16 bits they are rounded to float16. The weight stays a float32 tensor and
    the model runs as before: it is `compact-weights`, later in the pipeline, that writes a palette
    and indices, or float16 numbers. Zeros stay zeros, so it goes well after `sparsify`. One bit is
    binarization with one scale, two bits after `sparsify` are ternary weights with one more level.

    With ``bits=none`` each weight is measured alone with each number of bits, and those are taken
    that cost the fewest bytes for the noise that the budget allows.

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
        bits = dict.fromkeys(layers, self.options.bits)
        if self.options.bits is None and layers:
            bits, outcome.findings.search = self._within_budget(model, layers)
        for layer in layers:
            if self.max_rewrites is not None and outcome.rewritten.total() >= self.max_rewrites:
                break
            self._apply(layer, bits[layer], outcome)
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
            elif not np.isfinite(layer.matrix()).all():
                refused.append((layer.value, "it has numbers that are not finite"))
            else:
                layers.append(layer)
        outcome.matched[_RULE] += len(layers) + len(refused)
        outcome.refusals.extend(Refusal(_RULE, why, value.name or "") for value, why in refused)
        return layers

    def _apply(self, layer: Layer, bits: int | None, outcome: Outcome) -> None:
        if bits is None or bits == _DENSE_BITS:
            outcome.refusals.append(Refusal(_RULE, "fewer bits cost too much", layer.name))
            return
        before = layer.matrix()
        layer.value.const_value = _narrowed(layer, bits)
        after = layer.matrix()
        if np.array_equal(before, after):
            outcome.refusals.append(Refusal(_RULE, "it has so few numbers already", layer.name))
            return
        error = output_error(before, after, None)
        outcome.rewritten[f"{bits} bits"] += 1
        outcome.findings.layers.extend(
            findings.Layer(
                node.name or node.outputs[0].name or "",
                node.op_type,
                precision=f"{bits}-bit weights",
                sqnr_db=-20 * math.log10(error),
            )
            for node in layer.readers
        )

    def _within_budget(
        self, model: ir.Model, layers: Sequence[Layer]
    ) -> tuple[dict[Layer, int | None], Search]:
        workbench = self.workbench
        assert workbench is not None
        _, measure = split(workbench.calibration)
        single = Trials(model, workbench, measure.first(_SINGLE_SAMPLES))
        key = (self.name, self.options, tuple(layer.name for layer in layers))
        if key not in workbench.memory:
            workbench.memory[key] = [dict(self._noises(layer, single)) for layer in layers]
        noises = dict(zip(layers, workbench.memory[key], strict=True))
        budget, whole = workbench.budget, Trials(model, workbench, measure.first(_WHOLE_SAMPLES))
        aim = _FIRST_DB if budget.min_sqnr is None else budget.min_sqnr + _MARGIN_DB
        search = Search(goal="size")
        for _ in range(_ATTEMPTS):
            bits = _cheapest(noises, 10 ** (-aim / 10))
            kept = [(layer, layer.value.const_value) for layer in layers]
            for layer in layers:
                layer.value.const_value = _narrowed(layer, bits[layer])
            found = whole.fidelity_to_source(score=True)
            for layer, tensor in kept:
                layer.value.const_value = tensor
            objection = budget.objection(found) or ""
            mean = sum(bits[layer] * layer.size for layer in layers) / sum(
                layer.size for layer in layers
            )
            search.tried.append(
                Tried(
                    f"{mean:.1f} bits a weight",
                    sqnr_db=found.sqnr_db,
                    within_budget=not objection,
                    chosen=not objection,
                    reason=objection,
                )
            )
            if not objection:
                return dict(bits), search
            aim += _STEP_DB
        return dict.fromkeys(layers, None), search

    def _noises(self, layer: Layer, trials: Trials) -> Iterator[tuple[int, float]]:
        """Noise power at the model's outputs by number of bits."""
        assert self.workbench is not None
        self.workbench.on_step(f"measuring bits of {layer.name}")
        tensor = layer.value.const_value
        for bits in _CHOICES:
            layer.value.const_value = _narrowed(layer, bits)
            noise = trials.noise()
            layer.value.const_value = tensor
            yield bits, noise


def _narrowed(layer: Layer, bits: int) -> ir.TensorProtocol:
    """The weight with so few different numbers."""
    tensor = layer.value.const_value
    assert tensor is not None
    if bits == _DENSE_BITS:
        return tensor
    matrix = layer.matrix()
    if bits == _FLOAT16_BITS:
        with np.errstate(over="ignore"):
            half = matrix.astype(np.float16).astype(np.float64)
        return layer.tensor(half) if np.isfinite(half).all() else tensor
    flat = clustered(matrix.reshape(-1), 1 << bits)
    return layer.tensor(flat.reshape(matrix.shape))


def _cheapest(noises: Mapping[Layer, Mapping[int, float]], allowed: float) -> dict[Layer, int]:
    """The numbers of bits with the fewest bytes whose noises add up to what is allowed."""

    def spread(log_price: float) -> dict[Layer, int]:
        price = math.exp(log_price)

        def cost(layer: Layer, bits: int) -> float:
            noise = 0.0 if bits == _DENSE_BITS else noises[layer][bits]
            return noise + price * layer.size * bits

        choices = (*_CHOICES, _DENSE_BITS)
        return {layer: min(choices, key=lambda bits: cost(layer, bits)) for layer in noises}

    low, high = -90.0, 0.0  # the higher the price of a bit, the more noise
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = spread(middle)
        noise = sum(noises[each].get(bits, 0.0) for each, bits in found.items())
        if noise > allowed:
            high = middle
        else:
            low = middle
    return spread(low)
