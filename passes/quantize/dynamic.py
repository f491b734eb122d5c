"""Products that quantize their input when the model runs.

DynamicQuantizeLinear, MatMulInteger, Cast, Mul with the scales, Add: ONNX Runtime makes one kernel
of all that (DynamicQuantizeMatMul), or two where several products read one input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.regions import Product

from .editing import Editor, called_after
from .weights import Weights

__all__ = ["lower_dynamic"]


def lower_dynamic(
    editor: Editor, product: Product, weights: Weights, bias: np.ndarray[Any, Any] | None
) -> None:
    """Put the 8-bit form of a MatMul or Gemm in its place; the old nodes are left unread."""
    node, name = product.node, product.key
    numbers, scale, zero = _quantized(editor, product)
    total = editor.node(
        "MatMulInteger",
        [
            numbers,
            editor.constant(weights.numbers, called_after(name, "weight_quantized")),
            zero,
            editor.constant(
                np.zeros(len(weights.scales), np.int8), called_after(name, "weight_zero_point")
            ),
        ],
        name=called_after(name, "integer"),
        before=node,
        dtype=ir.DataType.INT32,
        like=node.outputs[0],
    )
    editor.take_over_name(node, total)
    wide = editor.node(
        "Cast",
        [total],
        {"to": ir.DataType.FLOAT.value},
        name=called_after(name, "wide"),
        before=node,
        dtype=ir.DataType.FLOAT,
        like=node.outputs[0],
    )
    scales = editor.node(
        "Mul",
        [scale, editor.constant(weights.scales, called_after(name, "weight_scale"))],
        name=called_after(name, "scales"),
        before=node,
        dtype=ir.DataType.FLOAT,
    )
    old = product.unclamped
    result = editor.node(
        "Mul",
        [wide, scales],
        name=called_after(name, "scaled"),
        before=node,
        dtype=ir.DataType.FLOAT,
        like=old,
    )
    if bias is not None:
        result = editor.node(
            "Add",
            [result, editor.constant(bias, called_after(name, "bias"))],
            name=called_after(name, "biased"),
            before=node,
            dtype=ir.DataType.FLOAT,
            like=old,
        )
    editor.take_over(old, result)


def _quantized(editor: Editor, product: Product) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Numbers, scale and zero point of the input; worked out once for all that read it."""
    value = product.activation
    for reader, _ in value.uses():
        if reader.op_type == "DynamicQuantizeLinear" and reader.graph is product.node.graph:
            first, second, third = reader.outputs
            return first, second, third
    first, second, third = editor.nodes(
        "DynamicQuantizeLinear",
        [value],
        (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8),
        name=called_after(value, "dynamic"),
        before=product.node,
    )
    return first, second, third
