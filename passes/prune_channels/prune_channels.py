"""The pass itself: which groups of channels may be pruned, and what is told of those that were."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt import findings
from onnxopt.channels import Trace, trace
from onnxopt.errors import OptionError
from onnxopt.pass_contract import Kind, Outcome, Pass, Refusal
from onnxopt.rewriting import Context
from onnxopt.workbench import Workbench

from .criteria import DATA_FREE
from .evidence import Evidence
from .options import PruneOptions
from .plan import RULES, Plan, fingerprint
from .units import Group, find_groups

__all__ = ["PruneChannels"]

Array = np.ndarray[Any, Any]
Mask = NDArray[np.bool_]


class PruneChannels(Pass):
    """Remove the channels and heads that matter least, and let the others take over.

    Lossy: the accuracy budget of the run judges the result. Channels that depend on one another
    (residual additions, gates, concatenations, groups, heads of attention) go together or not at
    all; `onnxopt inspect --channels` shows them. What the samples say of the layers' inputs tells
    which ones can be done without, and lets the layers that read them make up for the loss: with
    the covariance H of a layer's inputs the ones that stay become ``W_S + H_SS^-1 H_SR W_R``, and
    the bias takes what is constant. No training takes place; what comes out is a start for it.

    Groups are pruned as far as costs least, by what was measured: how far the model's outputs move
    on calibration samples with some of a group's channels gone.

    Left alone, with the reason: what the channels of a graph cannot be followed through, quantized
    weights (prune before quantizing), bodies of control flow and local functions. No tensor loses
    its last channel.
    """

    name = "prune-channels"
    kind = Kind.LOSSY
    needs_data = True
    Options: ClassVar[type] = PruneOptions

    def run(self, model: ir.Model) -> Outcome:
        """Prune the main graph."""
        outcome = Outcome(model, False)
        bench = self.workbench
        assert bench is not None, "the pass manager refuses a pass that needs samples"
        opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
        traced = trace(model.graph, opset, model.ir_version)
        groups = self._groups(traced, outcome)
        if not groups or not self.options.amount:
            return outcome
        evidence = self._evidence(model, traced, bench)
        plan = Plan(
            self.options,
            model,
            opset,
            traced,
            evidence,
            _saliencies(self.options.saliency),
            bench,
            outcome,
        )
        removed = plan.removed(groups)
        if removed.any():
            context = Context(model)
            plan.prune(model, traced, removed, context)
            self._report(traced, groups, removed, outcome)
            outcome.modified = True
        return outcome

    def _evidence(self, model: ir.Model, traced: Trace, bench: Workbench) -> Evidence:
        options = self.options
        moments = options.compensate or options.criterion not in DATA_FREE
        key = (self.name, fingerprint(model), moments)
        if key not in bench.memory:
            bench.on_step("observing layers")
            bench.memory[key] = Evidence.gather(model, traced, bench, moments=moments)
        found: Evidence = bench.memory[key]
        return found

    def _groups(self, traced: Trace, outcome: Outcome) -> list[Group]:
        """The groups that may be pruned; what may not goes into the outcome, with the reason."""
        found, kept = find_groups(traced)
        outcome.refusals.extend(Refusal(RULES["channel"], each.reason, each.node) for each in kept)
        groups = []
        for group in found:
            reason = self._reason_against(group)
            if reason:
                outcome.refusals.append(Refusal(RULES[group.kind], reason, group.name))
            else:
                groups.append(group)
        outcome.matched[RULES["channel"]] += len(found)
        return groups

    def _reason_against(self, group: Group) -> str:
        wanted = self.options.layers
        if wanted and not any(fnmatch.fnmatchcase(group.name, each) for each in wanted):
            return "its layer is not among those to prune"
        if group.kind == "head" and not self.options.heads:
            return "heads are to stay"
        if any(layer.weights.is_quantized for layer in (*group.writers, *group.readers)):
            return "its weights are quantized"
        return ""

    def _report(
        self, traced: Trace, groups: Sequence[Group], removed: Mask, outcome: Outcome
    ) -> None:
        for group in groups:
            gone = sum(bool(removed[unit].all()) for unit in group.units)
            outcome.rewritten[RULES[group.kind]] += gone
        for layer in traced.layers:
            if layer.outputs is not None and removed[layer.outputs].any():
                outcome.findings.layers.append(
                    findings.Layer(
                        layer.node.name or layer.node.outputs[0].name or "",
                        layer.node.op_type,
                        channels=int((~removed[layer.outputs]).sum()),
                        channels_removed=int(removed[layer.outputs].sum()),
                    )
                )


def _saliencies(path: str) -> dict[str, Array]:
    if not path:
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except (OSError, ValueError) as error:
        raise OptionError(f"saliencies cannot be read from {path}: {error}") from error
