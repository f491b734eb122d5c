"""The pass: measure, choose a strength for each site, rewrite."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.calibration import Channels, Observations, ObserverSpec, Rows, observe
from onnxopt.numerics.grids import UINT8
from onnxopt.numerics.layer_inputs import LayerInput
from onnxopt.numerics.smoothing import STRENGTHS, by_column, quantized_error, smoothing_factors
from onnxopt.pass_contract import Kind, Outcome, Pass, Refusal
from onnxopt.rewriting import Context, Refuse, Rewriter
from onnxopt.rewriting.dead_code import drop_unused_initializer

from ..shared.affine import Array
from .sites import Site, sites

__all__ = ["SmoothActivations"]

_RULE = "smooth"


@dataclasses.dataclass(frozen=True)
class _Options:
    """Options of the pass.

    Attributes:
        min_gain: Least gain at the outputs of the layers, in decibels, for which it is worth it.
        multiply_gain: The same where it takes a product that was not computed before.
    """

    min_gain: float = 1.0
    multiply_gain: float = 2.0

    def __post_init__(self) -> None:
        if min(self.min_gain, self.multiply_gain) < 0:
            raise ValueError("a gain must not be negative")


class SmoothActivations(Pass):
    """Even out the channels of activations before they are quantized.

    A layer in integers has one scale for all channels of its input. Where a few channels are much
    larger than the others, these few decide the scale, and the others are left with few steps.
    This pass moves scale from the channels of an activation into the weights that read it:
    x W = (x / s) (s W). The division goes into the constants of what makes the activation: the gain
    and bias of a normalization, or the weights and bias of a layer, also through rectifiers and
    pools. Weights are quantized with a scale for each output, which the factors of their maker do
    not disturb.

    For each activation, the strength of the smoothing is the one with which its layers come out
    best in 8 bits, on rows that the samples gave; where that gains less than ``min-gain`` decibels,
    it is left alone. Where wide layers read it (256 products for each number, so that one more does
    not count) and it gains at least ``multiply-gain``, a product may be inserted: for other
    readers, such as the residual of a transformer, which read the activation multiplied back; or
    for the layers themselves, where what makes the activation has no constants to divide.

    The numbers stay the same up to rounding. It is not an exact pass all the same: it needs
    samples, makes nothing better by itself, and runs once, where it stands in the pipeline. Exact
    passes after it would fold inserted products into float weights again.

    Left alone: layers without constant float32 weights, or whose weights others read too; bodies
    of control flow and local functions.
    """

    name: ClassVar[str] = "smooth-activations"
    prepares_for: ClassVar[str] = "quantize"
    kind: ClassVar[Kind] = Kind.LOSSY
    needs_data: ClassVar[bool] = True
    Options: ClassVar[type] = _Options
    options: _Options

    def run(self, model: ir.Model) -> Outcome:
        """Smooth what gains by it."""
        assert self.workbench is not None, "the pass manager refuses the pass without samples"
        outcome = Outcome(model, False)
        found: list[Site] = []
        for each in sites(model):
            if isinstance(each, Refusal):
                outcome.refusals.append(each)
            else:
                found.append(each)
        outcome.matched[_RULE] = len(found)
        if not found:
            return outcome
        bench = self.workbench
        observations = observe(
            model,
            bench.calibration,
            _requests(found),
            worker=bench.worker,
            crew=bench.crew,
            threads=bench.threads,
            skip_unobservable=True,
            on_step=bench.on_step,
        )
        context = Context(model)
        for site in found:
            if self.max_rewrites is not None and outcome.rewritten[_RULE] >= self.max_rewrites:
                break
            try:
                _apply(site, self._factors(site, observations), context)
            except Refuse as refusal:
                node = site.layers[0].node
                outcome.refusals.append(Refusal(_RULE, str(refusal), node.name or node.op_type))
            else:
                outcome.rewritten[_RULE] += 1
                outcome.modified = True
        return outcome

    def _factors(self, site: Site, observations: Observations) -> Array:
        """Factors by channel with which the layers come out best in 8 bits.

        Raises:
            Refuse: When no factors gain enough.
        """
        name = site.value.name or ""
        if name not in observations:
            raise Refuse(f"it {observations.left_alone.get(name, 'was not observed')}")
        channels = observations.get(name, Channels(site.axis))
        if not channels.elements:
            raise Refuse("it was empty in all samples")
        if len(channels.low) != site.channels:
            raise Refuse("it has another number of channels than the layers")
        weights = np.max([_magnitudes(site, layer.matrix) for layer in site.layers], axis=0)
        best = np.ones(site.channels)
        before = least = _error(site, observations, best)
        for strength in STRENGTHS:
            factors = smoothing_factors(channels.absmax, weights, strength)
            error = _error(site, observations, factors)
            if error < least:
                best, least = factors, error
        gain = 10 * math.log10(before / least) if least > 0 else 0.0
        wanted = self.options.multiply_gain if site.multiplies else self.options.min_gain
        if least >= before or gain < wanted:
            raise Refuse("smoothing gains too little")
        return best


def _requests(found: Sequence[Site]) -> Mapping[str, list[ObserverSpec[Any]]]:
    requests: dict[str, list[ObserverSpec[Any]]] = {}
    for site in found:
        specs: list[ObserverSpec[Any]] = [Channels(site.axis)]
        specs.extend(Rows(how) for how in dict.fromkeys(layer.input for layer in site.layers))
        requests[site.value.name or ""] = specs
    return requests


def _magnitudes(site: Site, matrix: Array) -> Array:
    """Greatest magnitude of the weights that read each channel."""
    return np.asarray(np.abs(matrix).max(axis=2).reshape(site.channels, -1).max(axis=1))


def _error(site: Site, observations: Observations, factors: Array) -> float:
    """Error of the layers in integers, relative to their outputs, with an activation smoothed."""
    name = site.value.name or ""
    channels = observations.get(name, Channels(site.axis))
    ends = float((channels.low / factors).min()), float((channels.high / factors).max())
    alike: dict[LayerInput, list[Array]] = collections.defaultdict(list)
    for layer in site.layers:
        alike[layer.input].append(layer.matrix)
    total = 0.0
    for how, matrices in alike.items():
        rows = observations.get(name, Rows(how)).rows.transpose(1, 0, 2)
        columns = by_column(factors, len(rows), rows.shape[2])
        total += quantized_error(rows, matrices, columns, ends, UINT8)
    return total / len(alike)


def _apply(site: Site, factors: Array, context: Context) -> None:
    """Divide the activation by its factors, and let its readers know.

    Raises:
        Refuse: When a constant cannot hold the factors; nothing has changed then.
    """
    edits = site.layer_edits(factors)
    if not site.refusal:
        edits.extend(site.maker_edits(factors, context))
    rewriter = Rewriter(context, site.layers[0].node)
    for edit in edits:
        edit.apply(rewriter)
    if site.refusal:
        divided = _product(site, 1.0 / factors, "divided", rewriter)
        for layer in site.layers:
            rewriter.replace_input(layer.node, 0, divided)
    elif site.others:
        restored = _product(site, factors, "restored", rewriter)
        for node, index in site.others:
            rewriter.replace_input(node, index, restored)
    for value in rewriter.unread:
        drop_unused_initializer(value)


def _product(site: Site, factors: Array, suffix: str, rewriter: Rewriter) -> ir.Value:
    """The activation times factors, right behind what makes it."""
    name, context = site.value.name, rewriter.context
    numbers = site.shaped(factors).astype(np.float32)
    node = ir.node("Mul", [site.value, rewriter.initializer(numbers, f"{name}_factors")])
    output = node.outputs[0]
    output.name, output.type = context.unique_name(f"{name}_{suffix}"), site.value.type
    output.shape = site.value.shape.copy() if site.value.shape is not None else None
    maker, graph = site.value.producer(), context.model.graph
    if maker is None:
        graph.insert_before(graph[0], node)
    else:
        node.name = context.unique_name(maker.name) if maker.name else ""
        graph.insert_after(maker, node)
    return output
