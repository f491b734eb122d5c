"""Let a constant stand for what a node computes, under the same name."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.rewriting import Context

__all__ = ["hold_as_constant"]

#: Smaller arrays are copied, so that a slice of a large weight does not keep the weight in memory.
_COPY_BYTES = 1 << 20


def hold_as_constant(old: ir.Value, tensor: ir.TensorProtocol, context: Context) -> ir.Value:
    """Let an initializer of the same graph take the name and the readers of a node's output.

    A graph makes its outputs itself, so for one of those it is a ``Constant`` node in the old
    node's place, with the type and the symbolic shape that the output had.

    Args:
        old: Output of a node that stands in a graph (not in a function). The node stays, and its
            output gets another name; removing it is up to the caller.
        tensor: The numbers.
        context: Of the model; knows which names are taken.

    Returns:
        The value that is read from now on.
    """
    node, name = old.producer(), old.name
    assert node is not None
    assert node.graph is not None
    old.name = context.unique_name(f"{name}_replaced")
    tensor = _own(tensor)
    if old.is_graph_output():
        holder = ir.node("Constant", [], {"value": tensor}, name=node.name)
        new = holder.outputs[0]
        new.name, new.type, new.shape = name, old.type, old.shape
        node.graph.insert_before(node, holder)
    else:
        tensor.name = name
        new = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        node.graph.register_initializer(new)
    new.doc_string = old.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    return new


def _own(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor itself, or a copy of a small one that may be a view of something larger."""
    if isinstance(tensor, ir.Tensor) and tensor.nbytes <= _COPY_BYTES:
        return ir.Tensor(np.array(tensor.numpy(), order="C", copy=True), dtype=tensor.dtype)
    return tensor
