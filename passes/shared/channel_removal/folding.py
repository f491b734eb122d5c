"""What constant channels add to a layer, put into its bias or into the weights of one of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxopt.channels import Layer

from .integer_carriers import carried

__all__ = ["Carriers", "Fold", "fold", "folds_into_bias"]

#: No more steps than a bias of 32 bits can count.
_LARGEST = 2.0**31 - 1


@dataclasses.dataclass(frozen=True)
class Carriers:
    """Inputs of a layer that take over what removed ones add.

    Attributes:
        places: By group, the input; -1 where the group has none.
        numbers: By group, its constant, which is not 0 where there is one.
        constants: By input, its constant if it is one that stays, else 0.
    """

    places: NDArray[np.int64]
    numbers: NDArray[np.float64]
    constants: NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Fold:
    """What becomes of a layer.

    Attributes:
        bias: What is added to each output channel; None when nothing is.
        steps: The same in steps of a bias of integers, where there is, or will be, such a bias.
        blocks: The weights [groups, inputs, outputs, taps] with what the carriers take over; None
            when they stay as they are.
    """

    bias: NDArray[np.float64] | None = None
    steps: NDArray[np.int64] | None = None
    blocks: NDArray[Any] | None = None

    def fits(self, layer: Layer) -> bool:
        """Whether all numbers are in the range of the layer's element type."""
        if self.blocks is not None:
            return bool(np.isfinite(self.blocks.astype(np.float64)).all())
        if self.steps is not None:
            given = layer.given_bias
            stored = np.int64(0) if given is None else given.stored.astype(np.int64)
            return bool((np.abs(stored + self.steps) <= _LARGEST).all())
        if self.bias is None:
            return True
        total = self.bias if layer.bias is None else self.bias + layer.bias
        weights = layer.node.inputs[1]
        assert weights is not None
        assert weights.dtype is not None
        with np.errstate(over="ignore"):
            cast = total.astype(weights.dtype.numpy())
        return bool(np.isfinite(cast.astype(np.float64)).all())


def folds_into_bias(layer: Layer) -> bool:
    """Whether what constants add is the same everywhere, and there is a bias to put it into.

    A bias of integers must count in the steps of the sums that it is added to.
    """
    if not layer.uniform or layer.bias_place is None:
        return False
    given, step = layer.given_bias, layer.bias_step
    if given is None or not given.is_quantized:
        return True
    if step is None or given.scale is None or given.zero_point is None or given.zero_point.any():
        return False
    return given.stored.dtype == np.int32 and bool(np.allclose(given.scale, step, 1e-5, 0))


def _counts_in_steps(layer: Layer) -> bool:
    """Whether the bias is, or will be, in integers."""
    given = layer.given_bias
    return layer.bias_step is not None and (given is None or given.is_quantized)


def _steps(layer: Layer, numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """What constants add, ``sum_j (q_j - zero point) * sum(W_j)``, without any rounding."""
    scale = layer.input_scale
    assert scale is not None
    return layer.levels_added(np.rint(numbers / scale)).astype(np.int64)


def fold(layer: Layer, numbers: NDArray[np.float64], carriers: Carriers) -> Fold:
    """Account for constant inputs of a layer, in double precision or in integers.

    Into the bias, where `folds_into_bias`: ``b + sum_j c_j * sum(W_j)``. Else into the weights of
    a carrier k, a constant input of the group that stays, ``W_k + sum_j (c_j / c_k) * W_j``, which
    is exact under any padding, since ``c_k`` times it is what all of them add at each place.
    Integer weights need more than one carrier (`integer_carriers`).

    Args:
        layer: The layer.
        numbers: The constants, by input; 0 for inputs that stay.
        carriers: For each group with a constant that is not 0, unless they go into the bias.
    """
    if not numbers.any():
        return Fold()
    if folds_into_bias(layer):
        if _counts_in_steps(layer):
            return Fold(steps=_steps(layer, numbers))
        return Fold(bias=layer.contribution(numbers))
    if layer.weights.is_quantized:
        return Fold(blocks=carried(layer, numbers, carriers.constants)[0])
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
