"""The numbers that a model holds."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.analysis.values import held_by_node

__all__ = ["stored"]


def stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that a model holds for a value: an initializer, or what a Constant node holds.

    Initializers that could be overridden by an input count, too: they are what trains.
    """
    if value is None:
        return None
    if value.is_initializer():
        return value.const_value
    return held_by_node(value.producer())
