"""How sparse each layer may be, by what its zeros are measured to do to the model's outputs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.findings import Search, Tried
from onnxopt.samples import Samples
from onnxopt.workbench import Effort, Workbench

from .allocation import NoiseModel
from .criteria import output_error
from .layers import Layer
from .pruner import Pruner
from .trials import Trials

__all__ = ["SparsitySearch"]

Array = np.ndarray[Any, Any]

#: Samples that single layers are measured with; whole models are measured with more.
_SAMPLES: Mapping[Effort, int] = {"low": 2, "medium": 4, "high": 8}
_WHOLE_SAMPLES = 4
#: Ratios at which single layers are measured.
_RATIOS: Mapping[Effort, tuple[float, ...]] = {
    "low": (0.15, 0.4, 0.7),
    "medium": (0.15, 0.3, 0.5, 0.75),
    "high": (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9),
}
#: With more noise than this, outputs do not tell how much there is.
_DROWNED = 0.2
#: So many whole models are tried for a budget.
_ATTEMPTS: Mapping[Effort, int] = {"low": 3, "medium": 5, "high": 8}
#: Other samples than those that were measured may come out a little worse.
_MARGIN_DB = 0.5
#: A result this near to what is allowed is near enough.
_NEAR_DB = 0.5
#: What is tried first when the budget names no signal-to-noise ratio, and how far steps go then.
_FIRST_DB, _STEP_DB = 20.0, 4.0


class SparsitySearch:
    """Measures layers one by one, and then whole models.

    Args:
        model: The model; it is as it was after each method.
        layers: Its layers.
        grams: They with their Gram matrices, or with the reason why they have none. Gone through
            several times.
        pruner: Makes a layer sparse.
        samples: What to measure with; not what the Gram matrices are made of, since weights are
            fitted to that.
        workbench: Budget, and where to run models.
        most: Largest ratio of a layer.
    """

    def __init__(
        self,
        model: ir.Model,
        layers: Sequence[Layer],
        grams: Iterable[tuple[Layer, Array | str]],
        pruner: Pruner,
        samples: Samples,
        workbench: Workbench,
        most: float,
    ) -> None:
        self._grams, self._pruner, self._workbench = grams, pruner, workbench
        effort = workbench.effort
        self._whole = Trials(model, workbench, samples.first(_WHOLE_SAMPLES * _SAMPLES[effort]))
        fixed = pruner.pattern.ratio
        grid = _RATIOS[effort] if fixed is None else (fixed,)
        key = ("sparsify", pruner, effort, _digest(layers))
        if key not in workbench.memory:
            single = Trials(model, workbench, samples.first(_SAMPLES[effort]))
            points = dict(self._measured(single, grid, len(layers)))
            workbench.memory[key] = [points[layer] for layer in layers]
        measured = dict(zip(layers, workbench.memory[key], strict=True))
        self.noise = NoiseModel(measured, most, whole=fixed is not None)

    def _measured(
        self, trials: Trials, grid: Sequence[float], count: int
    ) -> Iterator[tuple[Layer, Mapping[float, float]]]:
        """Noise at the model's outputs by layer and ratio.

        Outputs that are drowned in noise do not tell how much there is. Then it is taken from the
        error of the layer's own outputs and what share of that got through at a lower ratio.
        """
        for number, (layer, gram) in enumerate(self._grams, start=1):
            self._workbench.on_step(
                f"measuring what zeros cost, layer {number} of {count}: {layer.name}"
            )
            before, known = layer.matrix(), None if isinstance(gram, str) else gram
            points: dict[float, float] = {}
            through = 0.0
            for ratio in grid:
                weight = self._pruner.sparse(layer, before, ratio, known)
                local = output_error(before, weight, known) ** 2
                expected = through * local
                if expected < _DROWNED:
                    with _Restored([layer]):
                        layer.value.const_value = layer.tensor(weight)
                        noise = trials.noise()
                    if local > 0 and noise < _DROWNED:
                        through = noise / local
                    points[ratio] = max(noise, expected)
                else:
                    points[ratio] = expected
            yield layer, points

    def within_budget(self) -> tuple[Mapping[Layer, float] | None, Search]:
        """The sparsest model that keeps the budget, as ratios, and all that was tried for it.

        There are no ratios when no model keeps it.
        """
        budget, effort = self._workbench.budget, self._workbench.effort
        wanted = _FIRST_DB if budget.min_sqnr is None else budget.min_sqnr + _MARGIN_DB
        search = Search(goal="size")
        best: Mapping[Layer, float] | None = None
        aim, good, bad = wanted, math.inf, -math.inf  # in dB of the noise model
        for _ in range(_ATTEMPTS[effort]):
            ratios = self.noise.at_noise(10 ** (-aim / 10))
            tried, margin = self._try(ratios, wanted)
            search.tried.append(tried)
            if tried.within_budget:
                best, good = ratios, aim
                if margin is not None and margin < _NEAR_DB:
                    break
            else:
                bad = aim
            aim = _next_aim(aim, good, bad, margin)
        return best, search

    def _try(self, ratios: Mapping[Layer, float], wanted: float) -> tuple[Tried, float | None]:
        """Measure a whole model; and by how much it is better than wanted, if that is known."""
        budget, share = self._workbench.budget, self.noise.ratio(ratios)
        self._workbench.on_step(f"trying {share:.1%} zeros")
        with _Restored(ratios):
            for layer, gram in self._grams:
                if ratios[layer] > 0:
                    self._apply(layer, ratios[layer], gram)
            found = self._whole.fidelity_to_source(score=True)
        margin = None if budget.min_sqnr is None else found.sqnr_db - wanted
        objection = budget.objection(found) or ""
        if not objection and margin is not None and margin < 0:
            objection = "too near to the budget"
        tried = Tried(
            f"{share:.1%} zeros",
            sqnr_db=found.sqnr_db,
            agreement=None if found.agreement is None else found.agreement.fraction,
            score=None if found.score is None else found.score.after,
            within_budget=not objection,
            reason=objection,
        )
        return tried, margin

    def _apply(self, layer: Layer, ratio: float, gram: Array | str) -> None:
        weight = layer.matrix()
        known = None if isinstance(gram, str) else gram
        layer.value.const_value = layer.tensor(self._pruner.sparse(layer, weight, ratio, known))


def _next_aim(aim: float, good: float, bad: float, margin: float | None) -> float:
    """What to try next: by how much the last one was off, or halfway between good and bad."""
    fits = aim == good
    step = -_STEP_DB if fits else _STEP_DB
    if margin is not None and math.isfinite(margin) and (margin > 0) == fits:
        step = -margin
    if math.isfinite(good) and math.isfinite(bad) and not bad < aim + step < good:
        return (good + bad) / 2
    return aim + step


def _digest(layers: Iterable[Layer]) -> str:
    """Stands for the weights as they are."""
    digest = hashlib.sha256()
    for layer in layers:
        assert layer.value.const_value is not None
        digest.update(layer.name.encode() + b"\0" + layer.value.const_value.tobytes())
    return digest.hexdigest()


class _Restored:
    """Puts the weights of layers back when it is left."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        self._tensors = [(layer.value, layer.value.const_value) for layer in layers]

    def __enter__(self) -> None:
        """Nothing is done yet."""

    def __exit__(self, *_: object) -> None:
        for value, tensor in self._tensors:
            value.const_value = tensor
