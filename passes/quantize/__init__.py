"""Quantize to 8 bits where that is faster and stays true."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, ClassVar, Literal

import onnx_ir as ir
from onnxopt.passes.infer_shapes import InferShapes

from onnxopt.analysis.quantization import is_quantized
from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.findings import Findings
from onnxopt.layers import layer_name
from onnxopt.model import light_proto
from onnxopt.noise import LayerNoise, layer_noise
from onnxopt.pass_contract import Kind, Outcome, Pass, Refusal
from onnxopt.regions import Product, products
from onnxopt.search import Finding, search
from onnxopt.workbench import Workbench

from .explaining import all_left, treatments
from .lowering import lower
from .numbers import Numbers
from .observing import numbers_for, observations_for, sizes_of
from .opset import raise_opset
from .plan import Mode, Plan
from .range_choice import best_ranges
from .telling import tell
from .trials import Trials, Workshop

__all__ = ["Quantize", "QuantizeOptions"]

_QUANTIZED = "the model is quantized already"
_NOTHING = "nothing in the model can be computed in 8 bits"
#: So many samples tell how noisy each layer is.
_LOOKED_AT = 4
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
        float: Names of nodes that are to stay float.
    """

    scheme: Literal["auto", "static", "dynamic"] = "auto"
    float: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Solution:
    plan: Plan
    numbers: Numbers
    finding: Finding
    findings: Findings


class Quantize(Pass):
    """Compute convolutions and matrix products in 8 bits, where that is faster and stays true."""

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
        raised = model.clone()
        _prepare(raised)
        found = self._candidates(raised, outcome)
        if not found or not bench.calibration.first(1):
            outcome.findings.treatments = all_left(raised, _NOTHING, _reasons(outcome))
            return outcome
        key = (self.name, self.text, bench.target, _digest(model))
        if key not in bench.memory:
            bench.memory[key] = self._solve(raised, found, bench)
        solution: _Solution = bench.memory[key]
        self._report(solution, found, outcome)
        outcome.findings = dataclasses.replace(
            solution.findings,
            treatments=treatments(raised, solution.plan, solution.numbers, _reasons(outcome)),
        )
        if solution.plan.quantizes:
            _prepare(model)
            outcome.rewritten.update(lower(model, solution.plan, solution.numbers))
            outcome.modified = True
        return outcome

    def _candidates(self, model: ir.Model, outcome: Outcome) -> list[Product]:
        found: list[Product] = []
        kept = set(self.options.float)
        for each in products(model.graph):
            if not isinstance(each, Product):
                node, reason = each
                outcome.refusals.append(Refusal(node.op_type, reason, layer_name(node)))
            elif each.node.name in kept:
                outcome.refusals.append(
                    Refusal(each.node.op_type, "it is to stay float", layer_name(each.node))
                )
            else:
                outcome.matched[each.node.op_type] += 1
                found.append(each)
        return found

    def _solve(self, model: ir.Model, found: list[Product], bench: Workbench) -> _Solution:
        allowed = _SCHEMES[self.options.scheme]
        observations = observations_for(model, found, bench)
        with Workshop(model) as workshop:
            choice = best_ranges(observations, found, bench, workshop, allowed)
            numbers = numbers_for(observations, found, bench, choice, bench.effort)
            sizes = sizes_of(observations)
            finding = search(Trials(workshop, model, found, numbers, allowed, sizes), bench)
        plan = Plan({key: Mode(mode) for key, mode in finding.choices.items()})
        noise = _noise(model, plan, numbers, bench)
        findings = tell(finding, found, bench, noise, observations, choice)
        return _Solution(plan, numbers, finding, findings)

    def _report(self, solution: _Solution, found: list[Product], outcome: Outcome) -> None:
        finding = solution.finding
        for product in found:
            if solution.plan.mode(product.key) is Mode.FLOAT:
                reason = finding.left.get(product.key, finding.reason)
                node = product.node
                outcome.refusals.append(Refusal(node.op_type, reason, node.name or product.key))


def _reasons(outcome: Outcome) -> dict[str, str]:
    """Why products stay float, by name."""
    return {refusal.node: refusal.reason for refusal in outcome.refusals if refusal.node}


def _prepare(model: ir.Model) -> None:
    """Raise the opset and find out element types."""
    raise_opset(model)
    InferShapes()(model)


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


def _digest(model: ir.Model) -> str:
    proto: Any = light_proto(model)
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
