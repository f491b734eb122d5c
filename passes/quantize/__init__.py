"""Quantize to 8 bits where that is faster and stays true."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import onnx_ir as ir
from onnxopt.passes.infer_shapes import InferShapes

from onnxopt.analysis.quantization import is_quantized
from onnxopt.layers import layer_name
from onnxopt.pass_contract import Kind, Outcome, Pass, Refusal
from onnxopt.regions import Product, Recurrence, products, recurrences
from onnxopt.runtime.hardware import Target, resolve_target
from onnxopt.traversal import all_graphs
from onnxopt.workbench import Goal, Workbench

from ..shared.digest import model_digest
from ..shared.marks import META_QUANTIZED
from .explaining import all_left, treatments
from .lowering import lower
from .opset import BLOCKS_OPSET, PER_CHANNEL_OPSET, raise_opset
from .plan import Mode
from .smoothing import evened
from .solving import Solution, solve

__all__ = ["Quantize", "QuantizeOptions"]

_QUANTIZED = "the model is quantized already"
_KEPT = "it is to stay float"
_IN_A_BODY = "it is inside the body of control flow"
_STATIC_ONLY = "its 8-bit kernel takes ranges of each run's own, which the scheme has not"
_NOTHING = "nothing in the model can be computed in 8 bits"
#: The targets that stand for 16-bit activations.
_TARGETS = {"uint16": "npu-u16", "int16": "npu-s16"}
_SCHEMES: dict[str, tuple[Mode, ...]] = {
    "auto": (Mode.STATIC, Mode.STATIC_INPUT, Mode.DYNAMIC),
    "static": (Mode.STATIC, Mode.STATIC_INPUT),
    "dynamic": (Mode.DYNAMIC,),
}


@dataclasses.dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize.

    Attributes:
        scheme: Ranges from calibration, of each run's own, or whichever is better.
        smooth: Even out the channels of activations where that is better (see
            `smooth-activations`).
        float: Names of nodes that are to stay float.
        activations: Type of activations: 8 bits as the target has them, or 16 bits, which ONNX
            Runtime computes right but not fast on CPUs. Nothing is timed then, and what keeps the
            budget is quantized; say `--target npu-u16` or `npu-s16`, or the goal of size, so that
            the result is not undone for being slow here.
    """

    scheme: Literal["auto", "static", "dynamic"] = "auto"
    smooth: bool = True
    float: tuple[str, ...] = ()
    activations: Literal["auto", "uint16", "int16"] = "auto"


class Quantize(Pass):
    """Compute convolutions, matrix products and LSTM in 8 bits, where that is faster and true."""

    name = "quantize"
    kind = Kind.LOSSY
    needs_data: ClassVar[bool] = True
    raises_opset: ClassVar[bool] = True
    Options = QuantizeOptions

    def run(self, model: ir.Model) -> Outcome:
        """See the class."""
        outcome = Outcome(model, False)
        bench = self.workbench
        assert bench is not None, "the pass manager refuses passes that lack samples"
        if is_quantized(model):
            outcome.refusals.append(Refusal(self.name, _QUANTIZED))
            outcome.findings.treatments = all_left(model, _QUANTIZED, {})
            return outcome
        bench = self._aimed(bench)
        target = resolve_target(bench.target)
        raised = model.clone()
        _prepare(raised, target)
        allowed = _allowed(self.options.scheme, target)
        found = self._candidates(raised, outcome)
        recurrent = self._recurrent(raised, allowed, outcome)
        if not (found or recurrent) or not bench.calibration.first(1):
            outcome.findings.treatments = all_left(raised, _NOTHING, _reasons(outcome))
            return outcome
        key = (self.name, self.text, bench.target, model_digest(model))
        if key not in bench.memory:
            keys = {layer.key for layer in recurrent}
            bench.memory[key] = solve(
                raised, found, keys, allowed, bench, smooth=self.options.smooth
            )
        solution: Solution = bench.memory[key]
        self._report(solution, [*found, *recurrent], outcome)
        outcome.findings = dataclasses.replace(
            solution.findings,
            treatments=treatments(raised, solution.plan, solution.numbers, _reasons(outcome)),
        )
        if solution.plan.quantizes:
            _prepare(model, target)
            if solution.factors:
                evened(model, solution.factors)
                outcome.rewritten["evened activation"] = len(solution.factors)
            outcome.rewritten.update(lower(model, solution.plan, solution.numbers))
            model.meta[META_QUANTIZED] = True
            outcome.modified = True
        return outcome

    def _aimed(self, bench: Workbench) -> Workbench:
        """The workbench with the target that the options name; without a look at times there."""
        named = _TARGETS.get(self.options.activations, bench.target)
        goal: Goal = bench.goal if resolve_target(named).is_timed_here else "size"
        return dataclasses.replace(bench, target=named, goal=goal)

    def _candidates(self, model: ir.Model, outcome: Outcome) -> list[Product]:
        found: list[Product] = []
        kept = set(self.options.float)
        for each in products(model.graph):
            if not isinstance(each, Product):
                node, reason = each
                outcome.refusals.append(Refusal(node.op_type, reason, layer_name(node)))
            elif each.node.name in kept:
                outcome.refusals.append(Refusal(each.node.op_type, _KEPT, layer_name(each.node)))
            else:
                outcome.matched[each.node.op_type] += 1
                found.append(each)
        for graph in all_graphs(model.graph):
            if graph is not model.graph:
                for inner in (*products(graph), *recurrences(graph)):
                    node = inner[0] if isinstance(inner, tuple) else inner.node
                    outcome.refusals.append(Refusal(node.op_type, _IN_A_BODY, layer_name(node)))
        return found

    def _recurrent(
        self, model: ir.Model, allowed: Sequence[Mode], outcome: Outcome
    ) -> list[Recurrence]:
        found: list[Recurrence] = []
        kept = set(self.options.float)
        for each in recurrences(model.graph):
            node, reason = each if isinstance(each, tuple) else (each.node, "")
            if node.name in kept:
                reason = _KEPT
            elif Mode.DYNAMIC not in allowed:
                reason = reason or _STATIC_ONLY
            if reason or isinstance(each, tuple):
                outcome.refusals.append(Refusal(node.op_type, reason, layer_name(node)))
            else:
                outcome.matched[node.op_type] += 1
                found.append(each)
        return found

    def _report(
        self, solution: Solution, found: Sequence[Product | Recurrence], outcome: Outcome
    ) -> None:
        finding = solution.finding
        for product in found:
            if solution.plan.mode(product.key) is Mode.FLOAT:
                reason = finding.left.get(product.key, finding.reason)
                node = product.node
                outcome.refusals.append(Refusal(node.op_type, reason, node.name or product.key))


def _reasons(outcome: Outcome) -> dict[str, str]:
    """Why products stay float, by name."""
    return {refusal.node: refusal.reason for refusal in outcome.refusals if refusal.node}


def _allowed(scheme: str, target: Target) -> tuple[Mode, ...]:
    """The modes of a scheme that a target has."""
    if target.activation_bits == 8:
        return _SCHEMES[scheme]
    return tuple(mode for mode in _SCHEMES[scheme] if mode is not Mode.DYNAMIC)


def _prepare(model: ir.Model, target: Target) -> None:
    """Raise the opset and find out element types."""
    raise_opset(model, PER_CHANNEL_OPSET if target.activation_bits == 8 else BLOCKS_OPSET)
    InferShapes()(model)
