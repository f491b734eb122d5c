"""The pass itself: which weights are stored in how many bits."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
from onnxopt.passes.infer_shapes import InferShapes

from onnxopt.analysis.quantization import is_quantized
from onnxopt.analysis.values import constant_array
from onnxopt.calibration import Observations, Rows, observe
from onnxopt.findings import Findings, Layer, Region, Search, Treatment
from onnxopt.layers import layer_name
from onnxopt.pass_contract import Kind, Outcome, Pass, Refusal
from onnxopt.regions import Product
from onnxopt.search import Finding, search
from onnxopt.workbench import Effort, Workbench

from ..quantize.layers import layer_input
from ..quantize.opset import OpsetError, raise_opset
from ..quantize.readings import rows_to_round_by
from ..quantize.recovery import gram_layers
from ..shared.digest import model_digest
from ..shared.marks import META_QUANTIZED
from ..shared.search_findings import budget_text, tried_plans
from .explaining import narrowed, treatments
from .lowering import least_opset, lower_weights
from .narrowing import Form, Narrow, compensated, dequantized, narrow, stored_bytes
from .stores import Left, Store, Written, stores
from .trials import Trials

__all__ = ["QuantizeWeights", "QuantizeWeightsOptions"]

_FORMS: Mapping[str, tuple[Form, ...]] = {
    "auto": (Form.INT8, Form.INT4),
    "int8": (Form.INT8,),
    "int4": (Form.INT4,),
    "uint4": (Form.UINT4,),
    "uint8": (Form.UINT8,),
}
#: Seconds for rounding by second order.
_PATIENCE: Mapping[Effort, float] = {"low": 0.0, "medium": 30.0, "high": 300.0}
_STORED: Mapping[Form, str] = {
    Form.INT8: "stored in 8 bits with a scale for each output, computed in float",
    Form.INT4: "stored in 4 bits with a scale for each block, computed in float",
    Form.UINT4: "stored in 4 bits with a scale and zero for each block, computed in float",
    Form.UINT8: "stored in 8 bits with a scale and zero for each block, computed in float",
}
_QUANTIZED = "the model is quantized already"


@dataclasses.dataclass(frozen=True)
class QuantizeWeightsOptions:
    """How weights are stored.

    Attributes:
        form: Integers of 8 bits with a scale for each output, signed ones of 4 bits with a scale
            for each block, unsigned ones with a zero point too, or 8 or 4 bits by what is best.
        written: As DequantizeLinear (`qdq`), which every runtime knows, or as operators of ONNX
            Runtime (`nbits`): MatMulNBits, and GatherBlockQuantized for tables, which then may have
            4 bits too. No newer opset is needed for those.
        block: Inputs that share a scale, where a form has blocks: a power of two from 16.
        min_elements: Smaller weights are left alone.
        keep: Names of nodes whose weights are to stay as they are.
    """

    form: Literal["auto", "int8", "int4", "uint4", "uint8"] = "auto"
    written: Written = "qdq"
    block: int = 32
    min_elements: int = 1024
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.block < 16 or self.block & (self.block - 1):
            raise ValueError("block is a power of two, 16 at least")
        if self.min_elements < 0:
            raise ValueError("min-elements must not be negative")


@dataclasses.dataclass(frozen=True)
class _Solution:
    choices: dict[str, Form]
    weights: dict[tuple[str, Form], Narrow]
    finding: Finding
    findings: Findings


class QuantizeWeights(Pass):
    """Store weights in 8 or 4 bits, as far as that stays true, and compute in float.

    Lossy. The weights of MatMul, Gemm and Conv, and tables that Gather reads rows of, become
    integers with scales: int8 with one for each output (or row), int4, uint4 or uint8 with one for
    each block of inputs (MatMul and Gemm only, opset 21). DequantizeLinear makes floats of them
    when the model runs; ONNX Runtime fuses that with MatMul and Gemm (MatMulNBits), and then
    quantizes activations block by block as well. Scales have the least squared error; where
    samples are given, weights are rounded by second order (GPTQ). Or the operators of ONNX Runtime
    are written themselves: in any opset, with fewer kernels, and 4 bits for tables too.

    What is stored how is found by a search: within the accuracy budget, and by measured time unless
    the goal is size; with the goal of latency a weight is left alone where that is faster.

    Left alone: models that are quantized already (unless by `quantize` in the same run), weights
    that are read in other ways or in two layouts, bodies of control flow, types other than float32.
    """

    name = "quantize-weights"
    kind = Kind.LOSSY
    raises_opset: ClassVar[bool] = True
    Options = QuantizeWeightsOptions

    def run(self, model: ir.Model) -> Outcome:
        """See the class."""
        outcome = Outcome(model, False)
        bench = self.workbench
        assert bench is not None, "the optimizer gives lossy passes a workbench"
        if is_quantized(model) and META_QUANTIZED not in model.meta:
            outcome.refusals.append(Refusal(self.name, _QUANTIZED))
            outcome.findings.treatments = treatments(model, {}, {}, _QUANTIZED)
            return outcome
        raised = model.clone()
        forms = self._raise(raised, _FORMS[self.options.form], outcome)
        found = self._stores(raised, outcome)
        if not found or not forms or not bench.calibration.first(1):
            if META_QUANTIZED not in model.meta:
                outcome.findings.treatments = treatments(raised, {}, _reasons(outcome))
            return outcome
        key = (self.name, self.text, bench.goal, model_digest(model))
        if key not in bench.memory:
            bench.memory[key] = self._solve(raised, found, forms, bench)
        solution: _Solution = bench.memory[key]
        for store in found:
            if store.key not in solution.choices:
                finding = solution.finding
                reason = finding.left.get(store.key, finding.reason)
                outcome.refusals.extend(
                    Refusal(node.op_type, reason, layer_name(node)) for node in store.readers
                )
        outcome.findings = dataclasses.replace(
            solution.findings, treatments=self._treatments(model, raised, found, solution, outcome)
        )
        if solution.choices:
            chosen = set(solution.choices.values())
            raise_opset(model, max(map(self._least_opset, chosen)))
            InferShapes()(model)
            again = [each for each in self._all(model) if isinstance(each, Store)]
            outcome.rewritten.update(
                lower_weights(
                    model, again, solution.choices, solution.weights, self.options.written
                )
            )
            outcome.modified = True
        return outcome

    def _raise(
        self, model: ir.Model, wanted: tuple[Form, ...], outcome: Outcome
    ) -> tuple[Form, ...]:
        """Raise the opset as far as it goes; the forms that it then has."""
        for least in sorted(set(map(self._least_opset, wanted)), reverse=True):
            try:
                raise_opset(model, least)
            except OpsetError as error:
                outcome.refusals.append(Refusal(self.name, str(error)))
                continue
            InferShapes()(model)
            return tuple(form for form in wanted if self._least_opset(form) <= least)
        return ()

    def _least_opset(self, form: Form) -> int:
        return least_opset(form, self.options.written)

    def _all(self, model: ir.Model) -> Iterator[Store | Left]:
        return stores(model, self.options.min_elements, frozenset(self.options.keep))

    def _stores(self, model: ir.Model, outcome: Outcome) -> list[Store]:
        found = []
        for each in self._all(model):
            if isinstance(each, Store):
                outcome.matched["weights"] += 1
                found.append(each)
            else:
                outcome.refusals.append(
                    Refusal(each.node.op_type, each.reason, layer_name(each.node))
                )
        return found

    def _treatments(
        self,
        model: ir.Model,
        raised: ir.Model,
        found: Sequence[Store],
        solution: _Solution,
        outcome: Outcome,
    ) -> list[Treatment]:
        """How nodes read their weights; of all nodes where `quantize` has not told of them."""
        reasons = _reasons(outcome)
        chosen: dict[str, str] = {}
        for store in found:
            form = solution.choices.get(store.key)
            for node in store.readers if form is not None else ():
                assert form is not None
                chosen[layer_name(node)] = form.value
                reasons[layer_name(node)] = _STORED[form]
        if META_QUANTIZED in model.meta:
            return list(narrowed(raised, chosen, reasons))
        return treatments(raised, chosen, reasons)

    def _solve(
        self, model: ir.Model, found: list[Store], forms: tuple[Form, ...], bench: Workbench
    ) -> _Solution:
        weights = self._narrowed(model, found, forms, bench)
        written = self.options.written
        with Trials(model, found, weights, self.options.block, written) as trials:
            finding = search(trials, bench)
        choices = {key: Form(form) for key, form in finding.choices.items()}
        findings = self._tell(found, choices, weights, finding, bench)
        return _Solution(choices, weights, finding, findings)

    def _narrowed(
        self, model: ir.Model, found: list[Store], forms: tuple[Form, ...], bench: Workbench
    ) -> dict[tuple[str, Form], Narrow]:
        """Narrow weights of each store in each form that it can have."""
        bench.on_step("rounding weights")
        weights = {
            (store.key, form): narrow(_matrix(store), form, self.options.block)
            for store in found
            for form in forms
            if store.takes(form, self.options.written)
        }
        if not bench.given or not _PATIENCE[bench.effort]:
            return weights
        single = {
            store.products[0].key: store
            for store in found
            if len(store.products) == 1 and store.products[0].groups == 1
        }
        chosen = gram_layers([store.products[0] for store in single.values()], bench.effort)
        observed = _rows(model, chosen, bench)
        end = time.perf_counter() + _PATIENCE[bench.effort]
        for number, product in enumerate(chosen, start=1):
            if time.perf_counter() > end:
                break
            bench.on_step(f"rounding weights by second order, {number} of {len(chosen)}")
            gram, rows = _mean_gram(product, observed)
            store = single[product.key]
            for form in forms:
                if gram is not None and (store.key, form) in weights:
                    plain = weights[store.key, form]
                    weights[store.key, form] = compensated(plain, _matrix(store), gram, rows)
        return weights

    def _tell(
        self,
        found: Sequence[Store],
        choices: Mapping[str, Form],
        weights: Mapping[tuple[str, Form], Narrow],
        finding: Finding,
        bench: Workbench,
    ) -> Findings:
        """The sections of the report."""
        layers: list[Layer] = []
        regions: list[Region] = []
        for store in found:
            form = choices.get(store.key)
            reason = finding.left.get(store.key, finding.reason)
            if form is not None:
                reason = f"weights of {form}, within the budget"
                true = _decibels(_matrix(store), dequantized(weights[store.key, form]))
                reason += f": they are {true:.0f} dB true"
            for node in store.readers:
                layers.append(
                    Layer(
                        layer_name(node),
                        node.op_type,
                        precision=None if form is None else f"{form} weights",
                        weight_bytes_before=4 * store.size,
                        weight_bytes=_bytes(store, form, weights, self.options.block),
                        reason=reason,
                    )
                )
            regions.append(
                Region(
                    store.key,
                    tuple(layer_name(node) for node in store.readers),
                    "float" if form is None else form.value,
                    reason,
                    finding.seconds.get((store.key, "")),
                    finding.seconds.get((store.key, "" if form is None else form.value)),
                )
            )
        tried = list(tried_plans(finding))
        return Findings(
            layers=layers, search=Search(tried, regions, bench.goal, budget_text(bench))
        )


def _reasons(outcome: Outcome) -> dict[str, str]:
    """Why nodes keep their weights, by name."""
    return {each.node: each.reason for each in outcome.refusals if each.node}


def _matrix(store: Store) -> np.ndarray:
    """The weights with inputs first, float32 [K, M]."""
    if store.is_table:
        table = constant_array(store.value)
        assert table is not None
        return table.T
    product = store.products[0]
    weights = product.weights
    return weights.reshape(len(weights), -1).T if product.node.op_type == "Conv" else weights


def _rows(model: ir.Model, chosen: Sequence[Product], bench: Workbench) -> Observations:
    requests: dict[str, list[Rows]] = {}
    for product in chosen:
        spec = rows_to_round_by(product)
        asked = requests.setdefault(product.activation.name or "", [])
        if spec not in asked:
            asked.append(spec)
    return observe(
        model,
        bench.calibration,
        requests,
        worker=bench.worker,
        threads=bench.threads,
        on_step=bench.on_step,
    )


def _mean_gram(product: Product, observed: Observations) -> tuple[np.ndarray | None, int]:
    """Mean of ``x^T x``, float64 [K, K], and of how many rows; None where it was never seen."""
    found = observed.rows(product.activation.name or "", layer_input(product))
    if found is None or not found.seen:
        return None, 0
    return found.gram()[0], len(found.rows)


def _bytes(
    store: Store, form: Form | None, weights: Mapping[tuple[str, Form], Narrow], block: int
) -> int:
    if form is None:
        return 4 * store.size
    return stored_bytes(store.size, weights[store.key, form].numbers.shape[1], form, block)


def _decibels(before: np.ndarray, after: np.ndarray) -> float:
    noise = float(np.square(before.astype(np.float64) - after).sum())
    signal = float(np.square(before, dtype=np.float64).sum())
    return 10 * float(np.log10(signal / noise)) if noise > 0 and signal > 0 else float("inf")
