"""Products of two computed tensors, as in attention: which channels they need of each other."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxopt.channels.atoms import Ids
from onnxopt.channels.known import Known, Mask

__all__ = ["Contraction", "Mixture", "Pairing"]


@dataclasses.dataclass(eq=False)
class Pairing(abc.ABC):
    """A MatMul whose factors are both computed; its batch axes (heads) may hold channels.

    Attributes:
        node: The MatMul.
        summed: Atoms that the sum runs over, or of the factor that weighs, in the factor's shape.
        made: Atoms of the output in its shape; None when those are not followed.
    """

    node: ir.Node
    summed: Ids
    made: Ids | None

    @abc.abstractmethod
    def needed(self, removed: Mask, known: Mapping[ir.Value, Known]) -> Ids:
        """The atoms among `summed` that the output depends on.

        Args:
            removed: By atom, whether it is removed.
            known: What is known of the channels of each value.
        """

    def renumber(self, numbers: Ids) -> None:
        """Give channels the numbers of their atoms."""
        self.summed = numbers[self.summed]
        self.made = None if self.made is None else numbers[self.made]


class Contraction(Pairing):
    """A sum over channels, as queries times keys: ``out[h] = sum_j left[h, j] * right[h, j]``.

    A channel of one factor and its counterpart are one atom. ``summed`` is in the shape of the left
    factor, with the channels along the last axis.
    """

    def needed(self, removed: Mask, known: Mapping[ir.Value, Known]) -> Ids:
        """Channels that are 0 in one factor add nothing, nor do those of heads that are gone."""
        wanted = np.ones(self.summed.shape, np.bool_)
        if self.made is not None:
            wanted &= ~removed[self.made]
        left, right = (None if each is None else known.get(each) for each in self.node.inputs)
        if left is not None:
            wanted &= ~(left.mask & ~left.nonzero)
        if right is not None:
            wanted &= ~(right.mask & ~right.nonzero).swapaxes(-1, -2)
        return self.summed[wanted]


@dataclasses.dataclass(eq=False)
class Mixture(Pairing):
    """Sums over places, as attention times values: ``out[h, :, j] = weights[h] @ values[h, j]``.

    A channel of the output is the channel of the values that it is made of. ``summed`` are the
    heads of the weights.

    Attributes:
        output: The value that is made.
    """

    output: ir.Value

    def needed(self, removed: Mask, known: Mapping[ir.Value, Known]) -> Ids:
        """Weights matter where some channel of their head is left that is not constant."""
        assert self.made is not None
        varies = ~removed[self.made]
        given = known.get(self.output)
        if given is not None:
            varies = varies & ~given.mask
        heads = varies.any(axis=(-1, -2), keepdims=True)
        return self.summed[np.broadcast_to(heads, self.summed.shape)]
