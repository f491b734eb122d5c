"""Remove nodes whose output is their input.

Three families, each in a module of its own: element-wise arithmetic (``x + 0``, ``x * 1``,
``not not x``, Cast to the same type, ...), movement (Reshape to the same shape, Transpose in place,
Slice of everything, Unsqueeze after Squeeze, ...) and layers (a pool of one element, Resize by 1,
a reduction of dimensions of size 1, ...).

Exact: the output has certainly the numbers, the shape and the element type of the input. Numbers
may only differ where the node turns infinities into something else, or in the sign of a zero.

Left alone: operands that may broadcast the other to a larger shape; shapes that are not known to
stay (a shape stated for a graph output proves nothing); constants that can be overridden or are
parameters of a function; a node between a graph input, an initializer or a value of an outer graph
and a graph output, since outputs keep their names and a graph makes its outputs itself. Shapes that
the model computes are for fold-shapes to follow. Never
``x * 0``, ``x - x`` and ``x / x``, which are not constant when x is infinite or NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxopt.rewriting import RewritePass, RewriteRule

from .arithmetic import ARITHMETIC_RULES
from .layers import LAYER_RULES
from .movement import MOVEMENT_RULES

__all__ = ["EliminateNoOps"]


class EliminateNoOps(RewritePass):
    """Remove nodes whose output is their input."""

    name = "eliminate-no-ops"

    def rules(self) -> Sequence[RewriteRule[Any]]:
        """One rule for each way of doing nothing."""
        return (*ARITHMETIC_RULES, *MOVEMENT_RULES, *LAYER_RULES)
