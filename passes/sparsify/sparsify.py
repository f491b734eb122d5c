"""The pass itself: which weights are made sparse, how far, and what that does to them."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxopt import findings
from onnxopt.pass_contract import Kind, Outcome, Pass, Refusal
from onnxopt.rewriting import Refuse

from .allocation import erk, globally
from .criteria import magnitude, output_error
from .layers import OPERATORS, Layer, find_layers
from .patterns import Pattern, parse_pattern

__all__ = ["Sparsify"]

Array = np.ndarray[Any, Any]

_RULE = "weight"
#: What is made sparse unless asked otherwise.
_USUAL = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclasses.dataclass(frozen=True)
class _Options:
    """Options of `Sparsify`.

    Attributes:
        ratio: Share of zeros over all layers together.
        criterion: What tells which weights matter.
        pattern: ``unstructured``, ``N:M`` (of M neighbouring inputs of an output N keep their
            weights; this fixes the ratio), or ``RxC`` (blocks of R outputs times C inputs).
        allocation: How the ratio is spread: the same for each layer, one threshold for all, LAMP
            scores, or ERK densities.
        layers: Ratios of single layers, as ``NAME:RATIO`` with wildcards in the name of the weight;
            the first that fits counts. These layers are not part of the overall ratio.
        operators: Operators whose weights are made sparse.
        min_elements: Smaller weights are left alone.
        max_ratio: Largest ratio of a single layer.
    """

    ratio: float = 0.5
    criterion: Literal["magnitude"] = "magnitude"
    pattern: str = "unstructured"
    allocation: Literal["uniform", "global", "lamp", "erk"] = "uniform"
    layers: tuple[str, ...] = ()
    operators: tuple[str, ...] = _USUAL
    min_elements: int = 256
    max_ratio: float = 0.99

    def __post_init__(self) -> None:
        for name, value in (("ratio", self.ratio), ("max-ratio", self.max_ratio)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is from 0 to below 1, not {value:g}")
        parse_pattern(self.pattern)
        _table(self.layers)
        if unknown := set(self.operators) - set(OPERATORS):
            raise ValueError(
                f"weights of {min(unknown)} cannot be made sparse; those of "
                f"{', '.join(OPERATORS)} can"
            )
        if self.min_elements < 0:
            raise ValueError("min-elements must not be negative")


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

    def run(self, model: ir.Model) -> Outcome:
        """Make the weights of the main graph and of the bodies in it sparse."""
        outcome = Outcome(model, False)
        layers = self._layers(model, outcome)
        ratios = self._ratios(layers)
        for layer in layers:
            if self.max_rewrites is not None and outcome.rewritten.total() >= self.max_rewrites:
                break
            self._make_sparse(layer, ratios[layer], outcome)
        outcome.modified = bool(outcome.rewritten)
        return outcome

    @property
    def _pattern(self) -> Pattern:
        return parse_pattern(self.options.pattern)

    def _layers(self, model: ir.Model, outcome: Outcome) -> list[Layer]:
        """The layers that can be made sparse; the others go into the outcome, with the reason."""
        found, refused = find_layers(model, self.options.operators, self.options.min_elements)
        layers = []
        for layer in found:
            try:
                self._pattern.check(layer.layout)
                layers.append(layer)
            except Refuse as refusal:
                refused.append((layer.value, str(refusal)))
        outcome.matched[_RULE] += len(layers) + len(refused)
        outcome.refusals.extend(
            Refusal(_RULE, reason, value.name or "") for value, reason in refused
        )
        return layers

    def _ratios(self, layers: Sequence[Layer]) -> Mapping[Layer, float]:
        table = _table(self.options.layers)
        ratios: dict[Layer, float] = {}
        for layer in layers:
            for glob, ratio in table:
                if fnmatch.fnmatchcase(layer.name, glob):
                    ratios[layer] = ratio
                    break
        rest = [layer for layer in layers if layer not in ratios]
        if rest:
            ratios.update(self._spread(rest))
        return {layer: min(ratio, self.options.max_ratio) for layer, ratio in ratios.items()}

    def _spread(self, layers: Sequence[Layer]) -> Mapping[Layer, float]:
        ratio = self._pattern.ratio
        if ratio is not None:
            return dict.fromkeys(layers, ratio)
        match self.options.allocation:
            case "global":
                return globally(layers, self.options.ratio, use_lamp=False)
            case "lamp":
                return globally(layers, self.options.ratio, use_lamp=True)
            case "erk":
                return erk(layers, self.options.ratio)
        return dict.fromkeys(layers, self.options.ratio)

    def _make_sparse(self, layer: Layer, ratio: float, outcome: Outcome) -> None:
        before = layer.matrix()
        if ratio <= 0:
            outcome.refusals.append(Refusal(_RULE, "its ratio is 0", layer.name))
            return
        if not np.isfinite(before).all():
            outcome.refusals.append(
                Refusal(_RULE, "it has numbers that are not finite", layer.name)
            )
            return
        keep = self._pattern.keep(magnitude(before), layer.layout, ratio)
        after = np.where(keep, before, 0.0)
        if np.array_equal(before, after):
            outcome.refusals.append(Refusal(_RULE, "it is as sparse already", layer.name))
            return
        layer.value.const_value = layer.tensor(after)
        outcome.rewritten[layer.operator] += 1
        outcome.findings.layers.extend(_findings(layer, after, output_error(before, after, None)))


def _findings(layer: Layer, after: Array, error: float) -> Iterator[findings.Layer]:
    """What there is to tell of the nodes that read a weight."""
    for node in layer.readers:
        yield findings.Layer(
            node.name or node.outputs[0].name or "",
            node.op_type,
            zeros=float(np.mean(after == 0)),
            sqnr_db=-20 * math.log10(error) if error > 0 else math.inf,
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
