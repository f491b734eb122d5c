"""Make one layer sparse: the criterion, the pattern and what the other weights do about it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from .criteria import magnitude, wanda
from .layers import Layer
from .patterns import Pattern
from .reconstruction import damped, refit, sweep

__all__ = ["Criterion", "Pruner"]

Array = np.ndarray[Any, Any]
Criterion = Literal["magnitude", "wanda", "obs"]

#: Steps of conjugate gradients; what is left to gain after them is not seen.
_REFIT_STEPS = 15


@dataclasses.dataclass(frozen=True)
class Pruner:
    """Sets a share of a layer's weights to zero.

    Attributes:
        criterion: What tells which weights matter.
        pattern: Which of them are zero together.
        damping: Part of the mean diagonal that is added to Gram matrices.
    """

    criterion: Criterion
    pattern: Pattern
    damping: float

    def is_sparse(self, layer: Layer, weight: Array, ratio: float) -> bool:
        """Whether a layer has the pattern and the ratio already."""
        keep = self.pattern.keep(magnitude(weight), layer.layout, ratio)
        return bool(np.all(keep | (weight == 0)))

    def sparse(self, layer: Layer, weight: Array, ratio: float, gram: Array | None) -> Array:
        """The weights with this share of zeros.

        Args:
            layer: The layer.
            weight: Its weights as they were.
            ratio: Share of zeros; a pattern may fix its own.
            gram: Gram matrix of its inputs; None where there is none, and magnitudes decide.
        """
        pattern, layout = self.pattern, layer.layout
        if gram is None or self.criterion == "magnitude":
            return np.where(pattern.keep(magnitude(weight), layout, ratio), weight, 0.0)
        if self.criterion == "wanda":
            keep = pattern.keep(wanda(weight, gram), layout, ratio, by_row=True)
            return np.where(keep, weight, 0.0)
        gram = damped(gram, self.damping)
        nearest = layer.rounding()
        swept = sweep(weight, gram, pattern, layout, ratio, nearest)
        if nearest is not None:
            return swept
        wanted, start, metric = (each.astype(np.float32) for each in (weight, swept, gram))
        return refit(wanted, start, metric, _REFIT_STEPS)
