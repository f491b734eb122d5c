"""The numbers that a model holds."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.op_traits import is_standard

__all__ = ["stored"]


def stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that a model holds for a value: an initializer, or what a Constant node holds.

    Initializers that could be overridden by an input count, too: they are what trains.
    """
    if value is None:
        return None
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or not is_standard(node):
        return None
    attribute = next(iter(node.attributes.values()), None)
    if attribute is None or attribute.is_ref():
        return None
    match attribute.name:
        case "value":
            return attribute.as_tensor()
        case "value_float" | "value_floats":
            return ir.tensor(np.array(attribute.value, dtype=np.float32))
        case "value_int" | "value_ints":
            return ir.tensor(np.array(attribute.value, dtype=np.int64))
    return None
