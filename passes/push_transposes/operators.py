"""Which operators work as well on tensors whose axes are permuted, and what changes in the node.

An operator *carries* a layout between some of its inputs and outputs: if those are all permuted in
the same way, and its attributes and constants are adapted, it computes the permuted result. An
operator that takes axes away (Squeeze, reductions, Flatten, a Reshape) carries the layout on its
input side alone, for those permutations that leave the order of the remaining elements; one that
adds axes (Unsqueeze, some Reshapes) on its output side alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import constant
from onnxopt.op_traits import Trait, has_trait, is_standard
from onnxopt.rewriting import Refuse

from .axis_carriers import AXIS_HANDLERS
from .carriers import (
    Carrier,
    Change,
    Handler,
    first_to_first,
    known_rank,
    no_change,
    permuted_constant,
)
from .permutations import Permutation
from .sizes import SIZE_HANDLERS

__all__ = ["Carrier", "Change", "carrier_of", "change_for"]


def carrier_of(node: ir.Node, opset: int) -> Carrier | None:
    """Where a node carries a layout, or None when it does not or that is not known."""
    if not is_standard(node) or any(value is None for value in node.inputs[:1]):
        return None
    handler = _handler(node)
    if handler is None:
        return None
    try:
        return handler.carrier(node, opset)
    except Refuse:  # what is not known is not carried; the search goes on elsewhere
        return None


def change_for(node: ir.Node, perm: Permutation, opset: int) -> Change:
    """What changes in a node whose carried tensors are all given and taken permuted by ``perm``.

    Raises:
        Refuse: When the operator cannot work that way.
    """
    handler = _handler(node)
    assert handler is not None
    return handler.change(node, perm, opset)


def _handler(node: ir.Node) -> Handler | None:
    if node.op_type in _HANDLERS:
        return _HANDLERS[node.op_type]
    if has_trait(node, Trait.UNARY):
        return _UNARY
    return _BROADCAST if has_trait(node, Trait.BROADCAST) else None


# Element by element


def _broadcast_carrier(node: ir.Node, opset: int) -> Carrier | None:
    if any(value is None for value in node.inputs):
        return None
    width = known_rank(node.outputs[0])
    seats: list[int] = []
    for index, value in enumerate(node.inputs):
        known = known_rank(value)
        if constant(value) is not None:
            if known > width:
                return None
        elif known == width:
            seats.append(index)
        elif known != 0:
            return None  # it would need axes of its own first
    return Carrier(tuple(seats), (0,), width) if seats else None


def _broadcast_change(node: ir.Node, perm: Permutation, opset: int) -> Change:
    constants: dict[int, np.ndarray[Any, Any]] = {}
    for index, value in enumerate(node.inputs):
        tensor = constant(value)
        if tensor is None or tensor.size == 1:
            continue
        constants[index] = permuted_constant(value, perm)
    return Change(constants=constants)


_UNARY = Handler(first_to_first, no_change)
_BROADCAST = Handler(_broadcast_carrier, _broadcast_change)
_HANDLERS: Mapping[str, Handler] = {**AXIS_HANDLERS, **SIZE_HANDLERS}
