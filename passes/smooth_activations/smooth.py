"""The pass: measure, choose a strength for each site, rewrite."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from onnxopt.calibration import observe
from onnxopt.pass_contract import Kind, Outcome, Pass, Refusal
from onnxopt.rewriting import Context, Refuse

from .applying import apply_factors
from .factors import best_factors, requests
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
            requests(found),
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
                wanted = self.options.multiply_gain if site.multiplies else self.options.min_gain
                apply_factors(site, best_factors(site, observations, wanted), context)
            except Refuse as refusal:
                node = site.layers[0].node
                outcome.refusals.append(Refusal(_RULE, str(refusal), node.name or node.op_type))
            else:
                outcome.rewritten[_RULE] += 1
                outcome.modified = True
        return outcome
