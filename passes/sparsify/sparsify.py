"""The pass itself: which weights are made sparse, how far, and what that does to them."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxopt import findings
from onnxopt.pass_contract import Kind, Outcome, Pass, Refusal
from onnxopt.rewriting import Refuse
from onnxopt.samples import Samples, split

from .allocation import erk, globally
from .criteria import output_error
from .layers import OPERATORS, Layer, find_layers
from .patterns import Pattern, parse_pattern
from .pruner import Criterion, Pruner
from .search import SparsitySearch
from .statistics import GramMatrices

__all__ = ["Sparsify"]

Array = np.ndarray[Any, Any]

_RULE = "weight"
#: What is made sparse unless asked otherwise.
_USUAL = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclasses.dataclass(frozen=True)
class _Options:
    """Options of `Sparsify`.

    Attributes:
        ratio: Share of zeros over all layers together; ``none`` for the sparsest model that keeps
            the accuracy budget.
        criterion: What tells which weights matter: ``magnitude``; ``wanda``, magnitude times the
            norm of the input; ``obs``, what it costs after the other weights have made up for it,
            which they do. ``auto`` is ``obs`` with samples of the user's, else ``magnitude``.
        pattern: ``unstructured``, ``N:M`` (of M neighbouring inputs of an output N keep their
            weights; this fixes the ratio), or ``RxC`` (blocks of R outputs times C inputs).
        allocation: How the ratio is spread: the same for each layer, one threshold for all, LAMP
            scores, ERK densities, or by what zeros in each layer are measured to cost. ``auto`` is
            measured with samples of the user's, else the same for each layer.
        layers: Ratios of single layers, as ``NAME:RATIO`` with wildcards in the name of the weight;
            the first that fits counts. These layers are not part of the overall ratio.
        operators: Operators whose weights are made sparse.
        damping: Part of the mean diagonal that is added to a Gram matrix; the more, the closer
            ``obs`` stays to the weights as they were.
        min_elements: Smaller weights are left alone.
        min_inputs: Layers whose outputs have fewer inputs each are left alone: depthwise
            convolutions and the like, in which no weight can stand in for another.
        max_ratio: Largest ratio of a single layer.
    """

    ratio: float | None = 0.5
    criterion: Literal["auto", "magnitude", "wanda", "obs"] = "auto"
    pattern: str = "unstructured"
    allocation: Literal["auto", "uniform", "global", "lamp", "erk", "measured"] = "auto"
    layers: tuple[str, ...] = ()
    operators: tuple[str, ...] = _USUAL
    damping: float = 0.01
    min_elements: int = 256
    min_inputs: int = 32
    max_ratio: float = 0.99

    def __post_init__(self) -> None:
        for name, value in (("ratio", self.ratio), ("max-ratio", self.max_ratio)):
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} is from 0 to below 1, not {value:g}")
        parse_pattern(self.pattern)
        _table(self.layers)
        if unknown := set(self.operators) - set(OPERATORS):
            raise ValueError(
                f"weights of {min(unknown)} cannot be made sparse; those of "
                f"{', '.join(OPERATORS)} can"
            )
        if not self.damping > 0:
            raise ValueError("damping must be above 0")
        if self.min_elements < 0 or self.min_inputs < 0:
            raise ValueError("min-elements and min-inputs must not be negative")


class Sparsify(Pass):
    """Set the weights that matter least to zero.

    Lossy: the accuracy budget of the run judges the result. On ONNX Runtime's CPU provider zeros
    are multiplied like other numbers, so that inference takes as long as before; what zeros bring
    is a small file, once `compact-weights` stores it.

    Weights are those of Conv, ConvTranspose, Gemm and MatMul, and of LSTM, GRU, RNN and Gather
    (tables of embeddings) where `operators` names them. Each is seen as rows that make outputs and
    columns that meet inputs. Weights of QDQ models are made sparse on their integer grid: a
    dropped weight becomes the zero point, so that it stands for exactly 0.

    Left alone: biases and normalizations, weights that are read in different ways, that callers
    can feed, that are graph outputs, that are small, and weights in local functions. No layer is
    emptied. The mask of a sparse weight is where it is not 0 (or not the zero point); nothing else
    records it, so it survives every tool.
    """

    name = "sparsify"
    kind = Kind.LOSSY
    Options: ClassVar[type] = _Options

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        chosen = self.options
        self.needs_data = (  # type: ignore[misc]
            chosen.criterion in ("wanda", "obs")
            or chosen.allocation == "measured"
            or chosen.ratio is None
        )

    def run(self, model: ir.Model) -> Outcome:
        """Make the weights of the main graph and of the bodies in it sparse."""
        outcome = Outcome(model, False)
        layers = self._layers(model, outcome)
        stated = {layer: ratio for layer in layers if (ratio := self._stated(layer)) is not None}
        self._prune(self._grams(model, list(stated)), stated, outcome)
        rest = [layer for layer in layers if layer not in stated]
        self._prune(self._grams(model, rest), self._spread(model, rest, outcome), outcome)
        outcome.modified = bool(outcome.rewritten)
        return outcome

    @property
    def _pattern(self) -> Pattern:
        return parse_pattern(self.options.pattern)

    @property
    def _has_samples(self) -> bool:
        """Whether there are samples of the user's."""
        return self.workbench is not None and self.workbench.given

    @property
    def _pruner(self) -> Pruner:
        criterion: Criterion = self.options.criterion
        if self.options.criterion == "auto":
            criterion = "obs" if self._has_samples else "magnitude"
        return Pruner(criterion, self._pattern, self.options.damping)

    def _layers(self, model: ir.Model, outcome: Outcome) -> list[Layer]:
        """The layers that can be made sparse; the others go into the outcome, with the reason."""
        found, refused = find_layers(model, self.options.operators, self.options.min_elements)
        layers = []
        for layer in found:
            try:
                if layer.layout.columns < self.options.min_inputs:
                    raise Refuse("its outputs have few inputs each")
                self._pattern.check(layer.layout)
                if not np.isfinite(layer.matrix()).all():
                    raise Refuse("it has numbers that are not finite")
                layers.append(layer)
            except Refuse as refusal:
                refused.append((layer.value, str(refusal)))
        outcome.matched[_RULE] += len(layers) + len(refused)
        outcome.refusals.extend(
            Refusal(_RULE, reason, value.name or "") for value, reason in refused
        )
        return layers

    def _stated(self, layer: Layer) -> float | None:
        """The ratio that the table states for a layer."""
        for glob, ratio in _table(self.options.layers):
            if fnmatch.fnmatchcase(layer.name, glob):
                return ratio
        return None

    def _grams(
        self, model: ir.Model, layers: Sequence[Layer], samples: Samples | None = None
    ) -> Iterable[tuple[Layer, Array | str]]:
        """The layers with their Gram matrices, or with the reason why they have none.

        Args:
            model: The model.
            layers: The layers.
            samples: What to make them of; all that may be learnt from when None.
        """
        if self._pruner.criterion == "magnitude" or not layers:
            return [(layer, "") for layer in layers]
        assert self.workbench is not None
        return GramMatrices(model, layers, samples or self.workbench.calibration, self.workbench)

    def _spread(
        self,
        model: ir.Model,
        layers: Sequence[Layer],
        outcome: Outcome,
    ) -> Mapping[Layer, float]:
        """The ratio of each layer."""
        if not layers:
            return {}
        wanted: float | None = self.options.ratio
        fixed = self._pattern.ratio
        measured = self.options.allocation == "measured" or (
            self.options.allocation == "auto" and fixed is None and self._has_samples
        )
        if wanted is None or measured:
            return self._measured(model, layers, outcome)
        if fixed is not None:
            return dict.fromkeys(layers, fixed)
        match self.options.allocation:
            case "global":
                return globally(layers, wanted, use_lamp=False)
            case "lamp":
                return globally(layers, wanted, use_lamp=True)
            case "erk":
                return erk(layers, wanted)
        return dict.fromkeys(layers, wanted)

    def _measured(
        self,
        model: ir.Model,
        layers: Sequence[Layer],
        outcome: Outcome,
    ) -> Mapping[Layer, float]:
        """The ratios by measured noise."""
        workbench = self.workbench
        assert workbench is not None
        learn, measure = split(workbench.calibration)
        search = SparsitySearch(
            model,
            layers,
            self._grams(model, layers, learn),
            self._pruner,
            measure,
            workbench,
            self.options.max_ratio,
        )
        if self.options.ratio is not None:
            return search.noise.at_ratio(self.options.ratio)
        ratios, outcome.findings.search = search.within_budget()
        return dict.fromkeys(layers, 0.0) if ratios is None else ratios

    def _prune(
        self,
        grams: Iterable[tuple[Layer, Array | str]],
        ratios: Mapping[Layer, float],
        outcome: Outcome,
    ) -> None:
        pruner = self._pruner
        for layer, gram in grams:
            if self.max_rewrites is not None and outcome.rewritten.total() >= self.max_rewrites:
                break
            before, ratio = layer.matrix(), min(ratios[layer], self.options.max_ratio)
            reason = ""
            if ratio <= 0:
                reason = "its ratio is 0"
            elif pruner.is_sparse(layer, before, ratio):
                reason = "it is as sparse already"
            elif isinstance(gram, str) and gram and self.options.criterion != "auto":
                reason = gram
            if reason:
                outcome.refusals.append(Refusal(_RULE, reason, layer.name))
                continue
            known = None if isinstance(gram, str) else gram
            layer.value.const_value = layer.tensor(pruner.sparse(layer, before, ratio, known))
            after = layer.matrix()
            outcome.rewritten[layer.operator] += 1
            outcome.findings.layers.extend(
                _findings(layer, after, output_error(before, after, known), gram)
            )


def _findings(
    layer: Layer, after: Array, error: float, gram: Array | str
) -> Iterator[findings.Layer]:
    """What there is to tell of the nodes that read a weight."""
    for node in layer.readers:
        yield findings.Layer(
            node.name or node.outputs[0].name or "",
            node.op_type,
            zeros=float(np.mean(after == 0)),
            sqnr_db=-20 * math.log10(error) if error > 0 else math.inf,
            reason=f"by magnitude: {gram}" if isinstance(gram, str) and gram else "",
        )


def _table(layers: Sequence[str]) -> list[tuple[str, float]]:
    """Ratios by wildcard."""
    table = []
    for text in layers:
        glob, _, number = text.rpartition(":")
        try:
            ratio = float(number)
        except ValueError:
            ratio = -1.0
        if not glob or not 0 <= ratio < 1:
            raise ValueError(
                f"layers takes NAME:RATIO with a ratio from 0 to below 1, not '{text}'"
            )
        table.append((glob, ratio))
    return table
