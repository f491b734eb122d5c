"""What it means for an operator to carry a layout, and what the descriptions of operators share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import constant_array, has_one_use, rank
from onnxopt.rewriting import Refuse

from .permutations import Permutation

__all__ = [
    "NOTHING",
    "Carrier",
    "Change",
    "Handler",
    "first_alone",
    "first_to_first",
    "given_like",
    "known_axes",
    "known_rank",
    "no_change",
    "output_alone",
    "permuted_constant",
    "require_order",
]

#: A constant that others read too is stored a second time, permuted, up to so many bytes.
_MOST_BYTES_TWICE = 1024


@dataclasses.dataclass(frozen=True)
class Carrier:
    """Between which inputs and outputs a node carries a layout.

    Attributes:
        inputs: Their indices.
        outputs: Their indices.
        rank: Rank of all of them.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rank: int


@dataclasses.dataclass(frozen=True)
class Change:
    """What to change in a node so that it works on permuted tensors.

    Attributes:
        attributes: New values of attributes; None to leave one out.
        constants: New constants by input index, which may be one beyond the last input.
        order: Which elements of the first output, a vector, are what it was, in that order.
    """

    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    constants: Mapping[int, np.ndarray[Any, Any]] = dataclasses.field(default_factory=dict)
    order: tuple[int, ...] | None = None


#: The operator works on permuted tensors as it is.
NOTHING = Change()


@dataclasses.dataclass(frozen=True)
class Handler:
    """What is known of an operator.

    Attributes:
        carrier: Where a node carries a layout, given the opset; None or a refusal for nowhere.
        change: What changes in it for a permutation, given the opset; or a refusal.
    """

    carrier: Callable[[ir.Node, int], Carrier | None]
    change: Callable[[ir.Node, Permutation, int], Change]


def known_rank(value: ir.Value | None) -> int:
    """The rank of a value, or a refusal."""
    known = rank(value)
    if known is None:
        raise Refuse("the rank is not known")
    return known


def known_axes(given: Sequence[int] | None, width: int) -> tuple[int, ...]:
    """Axes counted from the front, or a refusal when they are not given."""
    if given is None:
        raise Refuse("the axes are not given")
    return tuple(axis % width for axis in given)


def require_order(kept: Sequence[int]) -> None:
    """Refuse unless axes that remain stand in their old order."""
    if list(kept) != sorted(kept):
        raise Refuse("the axes that remain would change their order")


def first_to_first(node: ir.Node, opset: int) -> Carrier:
    """From the first input to the first output."""
    return Carrier((0,), (0,), known_rank(node.inputs[0]))


def first_alone(node: ir.Node, opset: int) -> Carrier:
    """The first input alone; the output is the same in any layout."""
    return Carrier((0,), (), known_rank(node.inputs[0]))


def output_alone(node: ir.Node, opset: int) -> Carrier:
    """The first output alone."""
    return Carrier((), (0,), known_rank(node.outputs[0]))


def no_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    """Nothing in the node speaks of axes."""
    return NOTHING


def given_like(node: ir.Node, index: int, numbers: Sequence[int]) -> Change:
    """New axes (or the like), as attribute ``axes`` or as input, however the node has them."""
    if "axes" in node.attributes:
        return Change({"axes": tuple(numbers)})
    return Change(constants={index: np.array(numbers, np.int64)})


def permuted_constant(
    value: ir.Value | None, perm: Permutation, keep_rank: bool = False
) -> np.ndarray[Any, Any]:
    """A constant operand, aligned at the last axis as in broadcasting, permuted."""
    array = constant_array(value)
    if value is None or array is None:
        raise Refuse("a constant holds no numbers")
    if not has_one_use(value) and array.nbytes > _MOST_BYTES_TWICE:
        raise Refuse("a large constant is read elsewhere")
    full = array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(perm)
    leading = 0
    while not keep_rank and leading < full.ndim - 1 and full.shape[leading] == 1:
        leading += 1
    return np.ascontiguousarray(full.reshape(full.shape[leading:]))
