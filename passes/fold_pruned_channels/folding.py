"""What constant channels add to a layer, put into its bias or into the weights of one of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxopt.channels import Layer

__all__ = ["Carriers", "Fold", "fold", "folds_into_bias"]


@dataclasses.dataclass(frozen=True)
class Carriers:
    """Inputs of a layer that take over what removed ones add.

    Attributes:
        places: By group, the input; -1 where the group has none.
        numbers: By group, its constant, which is not 0 where there is one.
    """

    places: NDArray[np.int64]
    numbers: NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Fold:
    """What becomes of a layer.

    Attributes:
        bias: What is added to each output channel; None when nothing is.
        blocks: The weights [groups, inputs, outputs, taps] with what the carriers take over; None
            when they stay as they are.
    """

    bias: NDArray[np.float64] | None = None
    blocks: NDArray[Any] | None = None

    def is_finite(self, layer: Layer) -> bool:
        """Whether all numbers are in the range of the layer's element type."""
        if self.blocks is not None:
            return bool(np.isfinite(self.blocks.astype(np.float64)).all())
        if self.bias is None:
            return True
        with np.errstate(over="ignore"):
            total = self.bias if layer.bias is None else self.bias + layer.bias
            return bool(np.isfinite(total.astype(layer.blocks.dtype).astype(np.float64)).all())


def folds_into_bias(layer: Layer) -> bool:
    """Whether what constants add is the same everywhere, and there is a bias to put it into."""
    return layer.uniform and layer.bias_place is not None


def fold(layer: Layer, numbers: NDArray[np.float64], carriers: Carriers) -> Fold:
    """Account for constant inputs of a layer, in double precision.

    Into the bias, where `folds_into_bias`: ``b + sum_j c_j * sum(W_j)``. Else into the weights of
    a carrier k, a constant input of the group that stays, ``W_k + sum_j (c_j / c_k) * W_j``, which
    is exact under any padding, since ``c_k`` times it is what all of them add at each place.

    Args:
        layer: The layer.
        numbers: The constants, by input; 0 for inputs that stay.
        carriers: For each group with a constant that is not 0, unless they go into the bias.
    """
    if not numbers.any():
        return Fold()
    if folds_into_bias(layer):
        return Fold(bias=layer.contribution(numbers))
    blocks = np.array(layer.blocks)
    parted = numbers.reshape(layer.groups, -1)
    for group, used in enumerate(parted != 0):
        if used.any():
            place = int(carriers.places[group]) % parted.shape[1]
            ratios = parted[group, used] / carriers.numbers[group]
            columns = blocks[group, used].astype(np.float64)
            total = blocks[group, place].astype(np.float64) + np.tensordot(ratios, columns, 1)
            with np.errstate(over="ignore"):
                blocks[group, place] = total.astype(blocks.dtype)
    return Fold(blocks=blocks)
