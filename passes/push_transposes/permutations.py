"""Permutations of axes, as the attribute ``perm`` of Transpose means them.

``y = Transpose(x, p)`` has ``y.shape[i] == x.shape[p[i]]``: axis ``p[i]`` of ``x`` is axis ``i`` of
``y``.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import onnx_ir as ir

from onnxopt.analysis.attributes import ints_attribute
from onnxopt.analysis.values import rank
from onnxopt.op_traits import is_standard

__all__ = [
    "Frames",
    "Permutation",
    "compose",
    "inverse",
    "is_identity",
    "permutation_of",
    "permuted",
]

Permutation = tuple[int, ...]

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def permuted(items: Sequence[T], perm: Permutation) -> tuple[T, ...]:
    """What stands at each axis after a transpose; for a shape, the shape."""
    return tuple(items[axis] for axis in perm)


def compose(first: Permutation, second: Permutation) -> Permutation:
    """``Transpose(Transpose(x, first), second) = Transpose(x, compose(first, second))``."""
    return permuted(first, second)


def inverse(perm: Permutation) -> Permutation:
    """The permutation that undoes another; it gives the new place of each axis."""
    places = [0] * len(perm)
    for place, axis in enumerate(perm):
        places[axis] = place
    return tuple(places)


def is_identity(perm: Permutation) -> bool:
    """Whether nothing moves."""
    return perm == tuple(range(len(perm)))


def permutation_of(node: ir.Node | None) -> Permutation | None:
    """The permutation of a Transpose; None for another node or where the rank is not known.

    Raises:
        Refuse: When the attribute is a parameter of a function.
    """
    if node is None or node.op_type != "Transpose" or not is_standard(node):
        return None
    given = ints_attribute(node, "perm")
    if given is not None:
        return given
    known = rank(node.inputs[0])
    if known is None:
        known = rank(node.outputs[0])
    return None if known is None else tuple(reversed(range(known)))


class Frames(Generic[K]):
    """Which tensors have the same axes but for a permutation: union-find with permutations.

    Each tensor has a permutation that takes it to the frame of its group; two tensors of one group
    have the same frame if that is the same permutation.
    """

    def __init__(self) -> None:
        self._parents: dict[K, tuple[K, Permutation]] = {}

    def __contains__(self, item: K) -> bool:
        return item in self._parents

    def find(self, item: K, rank: int) -> tuple[K, Permutation]:
        """The group of a tensor, and the permutation that takes the tensor to its frame."""
        if item not in self._parents:
            self._parents[item] = (item, tuple(range(rank)))
        path: list[K] = []
        while self._parents[item][0] != item:
            path.append(item)
            item = self._parents[item][0]
        perm = self._parents[item][1]
        for each in reversed(path):  # from the one next to the root outwards
            perm = compose(self._parents[each][1], perm)
            self._parents[each] = (item, perm)
        return item, perm

    def join(self, first: K, second: K, perm: Permutation) -> bool:
        """Say that ``Transpose(first, perm)`` has the axes of ``second``.

        Returns False, and does nothing, when that contradicts what was said before.
        """
        root, to_root = self.find(first, len(perm))
        other, to_other = self.find(second, len(perm))
        through = compose(perm, to_other)
        if root == other:
            return to_root == through
        self._parents[root] = (other, compose(inverse(to_root), through))
        return True
