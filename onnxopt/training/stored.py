"""The numbers that a model holds."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.analysis.values import held_by_node

__all__ = ["replace_stored", "stored"]


def stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that a model holds for a value: an initializer, or what a Constant node holds.

    Initializers that could be overridden by an input count, too: they are what trains.
    """
    if value is None:
        return None
    if value.is_initializer():
        return value.const_value
    return held_by_node(value.producer())


def replace_stored(value: ir.Value, array: NDArray[Any]) -> bool:
    """Give a constant other numbers; False when they are the same."""
    old = stored(value)
    assert old is not None
    before = old.numpy()
    array = array.astype(before.dtype)
    if array.tobytes() == before.tobytes():
        return False
    new = ir.Tensor(array, dtype=old.dtype, name=old.name, doc_string=old.doc_string)
    new.metadata_props.update(old.metadata_props)
    if not value.is_initializer():
        node = value.producer()
        assert node is not None
        node.attributes.clear()
        node.attributes.add(ir.AttrTensor("value", new))
    value.const_value = new
    return True
