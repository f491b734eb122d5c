"""Which channels go, by what their going is measured to cost and to save."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt import findings
from onnxopt.analysis.inspection import inspect_model
from onnxopt.channels import Trace, trace
from onnxopt.errors import OnnxoptError
from onnxopt.model import save
from onnxopt.pass_contract import Outcome, Refusal
from onnxopt.rewriting import Context, Refuse
from onnxopt.runtime.trial import race
from onnxopt.workbench import Workbench

from ..shared.channel_removal import choose, remove
from .costs import Costs
from .criteria import Order, Scorer
from .evidence import Evidence
from .levels import Ladder, climb, interpolated, rungs
from .options import PruneOptions
from .trials import Trials
from .units import Group
from .weights import prune_reader, zero_writer

__all__ = ["RULES", "Plan", "fingerprint"]

Array = np.ndarray[Any, Any]
Mask = NDArray[np.bool_]

#: What a rewrite is called, by kind of group.
RULES = {"channel": "prune-channel", "head": "prune-head"}
#: Samples to measure on, and measured levels of a group, by effort.
_SAMPLES = {"low": 4, "medium": 8, "high": 16}
_LEVELS = {"low": (), "medium": (0.1, 0.3, 0.6), "high": (0.05, 0.15, 0.3, 0.5, 0.75)}
#: Bisections for a target in time.
_BISECTIONS = 5


class Plan:
    """Decides what is removed, and removes it.

    Args:
        options: What is asked for.
        model: The model.
        opset: Of its standard operators.
        traced: Its channels.
        evidence: What samples say of the inputs of its layers.
        saliencies: How much each weight matters, by name, where that was given.
        bench: Samples, and where to run models.
        outcome: Takes refusals and findings.
    """

    def __init__(
        self,
        options: PruneOptions,
        model: ir.Model,
        opset: int,
        traced: Trace,
        evidence: Evidence,
        saliencies: Mapping[str, Array],
        bench: Workbench,
        outcome: Outcome,
    ) -> None:
        self.options, self.bench, self.outcome = options, bench, outcome
        self.model, self.opset, self.traced, self.evidence = model, opset, traced, evidence
        self.scorer = Scorer(traced, evidence, saliencies)
        self._trials: Trials | None = None
        # What was measured of a group does not depend on how much is to go.
        asked = dataclasses.replace(options, amount=0.0, of="macs", keep_shapes=False)
        self._key = ("prune-channels", fingerprint(model), asked, bench.effort)

    @property
    def trials(self) -> Trials:
        """A copy of the model to measure on."""
        if self._trials is None:
            self._trials = Trials(
                self.model,
                self.opset,
                self.bench,
                _SAMPLES[self.bench.effort],
                self.evidence,
                compensate=self.options.compensate,
            )
        return self._trials

    def removed(self, groups: Sequence[Group]) -> Mask:
        """By atom, whether it goes."""
        ladders = self._ladders(groups)
        costs = Costs(self.traced, self.evidence, self._counted, self._whole())
        nothing = np.zeros(self.traced.count, np.bool_)
        if not ladders:
            return nothing
        least = 1 - self.options.amount
        if self.options.of == "latency":
            least = 0.0
        if self.options.spread == "uniform":
            states = _in_step(ladders, costs, least * costs.total(nothing))
        else:
            states = climb(ladders, costs.total, least * costs.total(nothing), self.traced.count)
        if self.options.of == "latency":
            return self._fast_enough([state for state, _ in states])
        return states[-1][0]

    def _ladders(self, groups: Sequence[Group]) -> list[Ladder]:
        if self._key not in self.bench.memory:
            outcome = Outcome(self.model, False)
            found = []
            for number, group in enumerate(groups, start=1):
                self.bench.on_step(f"measuring channels, group {number} of {len(groups)}")
                ladder = self._ladder(group, outcome)
                if ladder is not None:
                    found.append(ladder)
            self.bench.memory[self._key] = found, outcome.refusals, outcome.findings.curves
        ladders: list[Ladder]
        ladders, refusals, curves = self.bench.memory[self._key]
        self.outcome.refusals.extend(refusals)
        self.outcome.findings.curves.extend(curves)
        return ladders

    @property
    def _counted(self) -> Literal["macs", "parameters"]:
        return "parameters" if self.options.of == "parameters" else "macs"

    def _whole(self) -> float | None:
        """What the model costs at the size of the first sample; None where that is not known."""
        feed = self.bench.calibration.first(1)[0]
        shapes = {name: tuple(np.shape(value)) for name, value in feed.items()}
        try:
            facts = inspect_model(self.model, shapes)
        except OnnxoptError:  # a feed that the signature does not foresee
            return None
        return facts.parameters if self._counted == "parameters" else facts.macs_number

    def _ladder(self, group: Group, outcome: Outcome) -> Ladder | None:
        """How far the group can be pruned, and what that does to the model."""
        try:
            order = self._order(group)
        except Refuse as refuse:
            outcome.refusals.append(Refusal(RULES[group.kind], str(refuse), group.name))
            return None
        count = len(group.units)
        channels = max(1, round(np.mean([len(unit) for unit in group.units])))
        step = 1 if group.kind == "head" else -(-count // 24)
        if group.blocked and group.kind == "channel":
            wanted = max(1, self.options.round_to // channels)
            step = -(-step // wanted) * wanted
        counts = rungs(count, step, min(count - 1, int(count * self.options.max_ratio)))
        counts = [each for each in counts if each <= len(order.units)]
        if not counts:
            outcome.refusals.append(
                Refusal(RULES[group.kind], "it is too narrow to be pruned", group.name)
            )
            return None
        masks = [self._mask(group, order, each) for each in counts]
        harm = self._harm(group, order, counts, masks, outcome)
        nothing = np.zeros(self.traced.count, np.bool_)
        return Ladder((0, *counts), (0.0, *harm), (nothing, *masks))

    def _order(self, group: Group) -> Order:
        if self.options.criterion != "stability":
            return self.scorer.order(group, self.options.criterion)
        first = self.scorer.order(group, "reconstruction")
        if len(group.units) > 32:
            return first
        harm = []
        for unit in group.units:
            mask = np.zeros(self.traced.count, np.bool_)
            mask[unit] = True
            harm.append(self.trials.harm(mask))
        order = np.argsort(harm, kind="stable")
        return Order(tuple(order.tolist()), tuple(np.cumsum(np.array(harm)[order]).tolist()))

    def _mask(self, group: Group, order: Order, count: int) -> Mask:
        mask = np.zeros(self.traced.count, np.bool_)
        for unit in order.units[:count]:
            mask[group.units[unit]] = True
        return mask

    def _harm(
        self,
        group: Group,
        order: Order,
        counts: Sequence[int],
        masks: Sequence[Mask],
        outcome: Outcome,
    ) -> tuple[float, ...]:
        """Measured where the amount is spread by sensitivity, else as the criterion has it."""
        levels = _LEVELS[self.bench.effort]
        if self.options.spread == "uniform" or not levels:
            return tuple(order.errors[each - 1] for each in counts)
        wanted = [level * len(group.units) for level in levels]
        places = sorted({int(np.argmin(np.abs(np.array(counts) - each))) for each in wanted})
        measured = [(counts[place], self.trials.harm(masks[place])) for place in places]
        outcome.findings.curves.append(
            findings.Curve(
                group.name,
                tuple(count / len(group.units) for count, _ in measured),
                tuple(-10 * float(np.log10(max(harm, 1e-20))) for _, harm in measured),
                plot="Sensitivity to pruning",
                x_label="share removed",
                unit="dB",
            )
        )
        return interpolated(counts, measured)

    def _fast_enough(self, states: Sequence[Mask]) -> Mask:
        """The least pruned of these states that takes no more than the wanted share of the time."""
        feed = self.bench.calibration.first(1)[0]
        low, high = 0, len(states) - 1
        with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
            before = pathlib.Path(folder) / "before.onnx"
            save(self.model, before)

            def share(state: Mask) -> float:
                other = self.model.clone()
                traced = trace(other.graph, self.opset, other.ir_version)
                self.prune(other, traced, state, Context(other), shapes=True)
                path = pathlib.Path(folder) / "after.onnx"
                save(other, path)
                times = race(
                    self.bench.worker,
                    [before, path],
                    feed,
                    threads=self.bench.threads,
                    seconds=self.bench.seconds,
                )
                return float(np.median(times[1]) / np.median(times[0]))

            for _ in range(_BISECTIONS):
                if high - low <= 1:
                    break
                middle = (low + high) // 2
                if share(states[middle]) <= 1 - self.options.amount:
                    high = middle
                else:
                    low = middle
        return states[high]

    def prune(
        self, model: ir.Model, traced: Trace, removed: Mask, context: Context, shapes: bool = False
    ) -> None:
        """Take channels out of a model, or out of its weights only.

        Args:
            model: This model, or a copy.
            traced: Its channels.
            removed: By atom, whether it goes.
            context: For changes to the model.
            shapes: Take them out even if shapes are to be kept.
        """
        evidence = self.evidence if self.options.compensate else None
        for layer in traced.layers:
            if layer.inputs is not None:
                prune_reader(layer, removed, evidence, context)
        if self.options.keep_shapes and not shapes:
            for layer in traced.layers:
                if layer.outputs is not None:
                    zero_writer(layer, removed, context)
            return
        # Nothing reads them any more, so that they can go without a trace.
        remove(choose(traced, {}, 1, removed), context)


def _in_step(ladders: Sequence[Ladder], costs: Costs, wanted: float) -> list[tuple[Mask, float]]:
    """All groups pruned by about the same share, from nothing to what is wanted."""
    states = []
    for share in np.linspace(0, 1, 101):
        state = np.zeros_like(ladders[0].atoms[0])
        for ladder in ladders:
            most = share * ladder.removed[-1]
            place = int(np.argmin(np.abs(np.array(ladder.removed) - most)))
            state = state | ladder.atoms[place]
        states.append((state, costs.total(state)))
        if states[-1][1] <= wanted:
            break
    return states


def fingerprint(model: ir.Model) -> int:
    """A number that another model hardly has."""
    found = zlib.crc32(repr([(node.op_type, node.name) for node in model.graph]).encode())
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype != ir.DataType.STRING:
            array = np.asarray(value.const_value.numpy())
            found = zlib.crc32(array.tobytes(), found)
    return found
