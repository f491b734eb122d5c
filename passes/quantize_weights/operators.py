"""Narrow weights as operators of ONNX Runtime: MatMulNBits, and GatherBlockQuantized for tables.

What the runtime makes of DequantizeLinear and MatMul anyway, written out: any opset will do, Gemm
may be transposed, products that share stored weights have kernels too, and tables are gathered and
made float by one kernel. Other runtimes do not know these operators.

Numbers are unsigned. Those of 4 bits lie two in a byte, the first in the lower half; blocks run
along the inputs of a product and along the rows of a table. Without zero points, zero is the middle
(``contrib_ops/cpu/quantization/matmul_nbits.cc`` and ``gather_block_quantized.cc``).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import dims
from onnxopt.regions import Product

from ..quantize.editing import Editor, called_after
from .narrowing import Narrow

__all__ = ["gather_rows", "has_operator", "multiply"]

Array = np.ndarray[Any, Any]

_DOMAIN = "com.microsoft"
#: Activations are quantized to 8 bits, block by block, as they are where the runtime fuses.
_ACCURACY_LEVEL = 4
#: Blocks that one scale for each output is repeated for.
_BLOCKS = (128, 64, 32, 16)


def has_operator(product: Product) -> bool:
    """Whether a product can be one operator of the runtime: its input is known to have rows."""
    if product.node.op_type == "Gemm":
        return True
    shape = dims(product.activation)
    return product.node.op_type == "MatMul" and shape is not None and len(shape) >= 2


def multiply(editor: Editor, product: Product, narrow: Narrow) -> None:
    """Put MatMulNBits, with its bias, in the place of a product."""
    node, stored = product.node, _stored(narrow)
    inputs, outputs = narrow.numbers.shape
    blocks = stored.scales.shape[1]
    numbers = np.pad(stored.numbers, ((0, 0), (0, blocks * stored.block - inputs)))
    key, bias = product.key, product.bias
    packed = _packed(numbers.reshape(outputs, blocks, stored.block), stored.bits)
    zeros = None
    if stored.zeros is not None:
        zeros = editor.constant(_packed(stored.zeros, stored.bits), called_after(key, "zeros"))
    operands = [
        product.activation,
        editor.constant(packed, called_after(key, "narrow")),
        editor.constant(stored.scales, called_after(key, "scales")),
        zeros,
        None,
        None if bias is None else editor.constant(bias, called_after(key, "bias")),
    ]
    old = node.outputs[0] if bias is None else product.unclamped
    result = editor.node(
        "MatMulNBits",
        _without_missing_end(operands),
        {
            "K": inputs,
            "N": outputs,
            "bits": stored.bits,
            "block_size": stored.block,
            "accuracy_level": _ACCURACY_LEVEL,
        },
        name=called_after(key, "narrowed"),
        before=node,
        dtype=ir.DataType.FLOAT,
        like=old,
        domain=_DOMAIN,
    )
    editor.take_over_name(node, result)
    last = node if bias is None or product.bias_node is None else product.bias_node
    editor.take_over(old, result)
    editor.remove_unread([last])


def gather_rows(editor: Editor, node: ir.Node, narrow: Narrow, key: str) -> None:
    """Put GatherBlockQuantized in the place of a Gather of rows.

    Args:
        editor: Of the model.
        node: The Gather.
        narrow: The table, turned.
        key: What the table is called.
    """
    stored, old = _stored(narrow), node.outputs[0]
    arrays = [(_packed(stored.numbers, stored.bits), "narrow"), (stored.scales, "scales")]
    if stored.zeros is not None:
        arrays.append((_packed(stored.zeros, stored.bits), "zeros"))
    first, *others = (editor.constant(array, called_after(key, word)) for array, word in arrays)
    result = editor.node(
        "GatherBlockQuantized",
        [first, node.inputs[1], *others],
        {"bits": stored.bits, "block_size": stored.block, "gather_axis": 0, "quantize_axis": 1},
        name=called_after(old, "narrowed"),
        before=node,
        dtype=ir.DataType.FLOAT,
        like=old,
        domain=_DOMAIN,
    )
    editor.take_over_name(node, result)
    editor.take_over(old, result)
    editor.remove_unread([node])


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Unsigned numbers, outputs (or rows) first.

    Attributes:
        numbers: uint8 [M, K].
        scales: float32 [M, blocks].
        zeros: uint8 [M, blocks], or None where zero is the middle.
        bits: Of a number.
        block: Numbers in a block.
    """

    numbers: Array
    scales: Array
    zeros: Array | None
    bits: int
    block: int


def _stored(narrow: Narrow) -> _Stored:
    kind = narrow.numbers.dtype
    bits = 4 if kind in (ml_dtypes.int4, ml_dtypes.uint4) else 8
    is_signed = kind in (ml_dtypes.int4, np.int8)
    count, outputs = narrow.numbers.shape
    codes = narrow.numbers.astype(np.int16).T + (1 << (bits - 1) if is_signed else 0)
    scales, block = narrow.scales.T, narrow.block
    if not block:
        block = min(_BLOCKS, key=lambda each: -(-count // each) * (each + scales.itemsize))
        scales = np.repeat(scales.reshape(outputs, 1), -(-count // block), axis=1)
    zeros = None if is_signed else narrow.zeros.astype(np.uint8).T
    return _Stored(codes.astype(np.uint8), np.ascontiguousarray(scales), zeros, bits, block)


def _packed(numbers: Array, bits: int) -> Array:
    """Numbers of 4 bits two in a byte along the last axis; those of 8 as they are."""
    if bits == 8:
        return np.ascontiguousarray(numbers)
    if numbers.shape[-1] % 2:
        numbers = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, 1)])
    return np.asarray(numbers[..., 0::2] | (numbers[..., 1::2] << 4), np.uint8)


def _without_missing_end(values: list[ir.Value | None]) -> list[ir.Value | None]:
    while values[-1] is None:
        values = values[:-1]
    return values
