"""Shapes of graph outputs: what the file states, and what is certain.

The shape of a graph output is what the author of the model wrote down, and no runtime holds the
model to it: it stays as it is when somebody makes the batch of the inputs dynamic, and an exporter
gives two sizes one name where its user did. So a stated shape of an output proves nothing. What has
been found out is kept beside it, since the interface must come out as it went in.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["prove_shape", "proven_shape"]

#: The place in `onnx_ir.Value.meta`, which is never serialized.
_PROVEN = "onnxopt.proven_shape"


def prove_shape(output: ir.Value, shape: ir.Shape | None) -> None:
    """Keep the shape that a graph output certainly has, beside the one that is stated."""
    output.meta[_PROVEN] = shape


def proven_shape(value: ir.Value) -> ir.Shape | None:
    """The shape that a value certainly has; of a graph output, only what `prove_shape` was told."""
    if value.is_graph_output() and not value.is_graph_input():
        proven: ir.Shape | None = value.meta.get(_PROVEN)
        return proven
    return value.shape
