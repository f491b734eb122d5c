"""Quantization: integers run as floats on a grid, so that gradients pass; see `grids`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from onnxopt.analysis.values import rank as rank_of
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Refuse
from onnxopt.training.grids import FakeQuantize, Quantize, aligned, range_of
from onnxopt.training.node_view import Builder, Call, Form, NodeView, Operand
from onnxopt.training.numbers import torch_type
from onnxopt.training.operators.convolution import convolution
from onnxopt.training.stored import stored

__all__ = ["BUILDERS"]


def _zero_like(scale: Tensor, zero: Tensor | None) -> Tensor:
    return torch.zeros_like(scale) if zero is None else zero.to(scale.dtype)


def _quantized_type(node: NodeView) -> ir.DataType:
    """The type that QuantizeLinear gives: that of the zero point, an attribute, or uint8."""
    asked = node.type_attribute("output_dtype", ir.DataType.UNDEFINED)
    if asked != ir.DataType.UNDEFINED:
        return asked
    zero = node.input(2)
    if zero is None:
        return ir.DataType.UINT8
    return _type_of(node, 2)


def _type_of(node: NodeView, index: int) -> ir.DataType:
    """The element type of a zero point: of a constant, as the model says, or what Cast makes."""
    value, array = node.input(index), node.constant(index)
    if array is not None:
        return ir.DataType.from_numpy(array.dtype)
    maker = None if value is None else value.producer()
    if value is not None and value.dtype is not None:
        return value.dtype
    if maker is None or maker.op_type != "Cast" or not is_standard(maker):
        raise Refuse("a zero point of unknown type")
    return node.beside(maker).type_attribute("to", ir.DataType.UNDEFINED)


def _quantize(node: NodeView) -> Call:
    low, high = range_of(_quantized_type(node))
    node.ignore_attributes("saturate", "precision")
    axis, block = node.int_attribute("axis", 1), node.int_attribute("block_size", 0)

    def quantize(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        step = aligned(scale, x, axis, block)
        start = aligned(_zero_like(scale, zero), x, axis, block)
        if not x.is_floating_point():
            x = x.to(scale.dtype)
        return Quantize.apply(x, step, start, low, high)

    return Call(quantize, (node.tensor(0), node.tensor(1), node.tensor(2)))


def _dequantize(node: NodeView) -> Call:
    """What QuantizeLinear made on the same grid, and integer weights, are rounded in one go."""
    node.ignore_attributes("output_dtype")
    axis, block = node.int_attribute("axis", 1), node.int_attribute("block_size", 0)
    source = _quantized_from(node)
    if source is not None or node.is_shadow(0):
        dtype = _stored_type(node) if source is None else _quantized_type(source)
        low, high = range_of(dtype)
        before = node.tensor(0) if source is None else source.tensor(0)
        fine = dtype == ir.DataType.INT32
        same = _one_zero(node)

        def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
            if fine:
                return x  # steps so small that float32 does not resolve them
            if torch.compiler.is_exporting() and dtype.bitwidth >= 8:
                return _traceable(x, scale, zero, axis, block, dtype)
            step = aligned(scale, x, axis, block)
            if same is not None:
                return FakeQuantize.apply(x, step, low - same, high - same)
            start = aligned(_zero_like(scale, zero), x, axis, block)
            return FakeQuantize.apply(x, step, low - start, high - start)

        return Call(fake_quantize, (before, node.tensor(1), node.tensor(2)))

    def dequantize(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        step = aligned(scale, x, axis, block)
        start = aligned(_zero_like(scale, zero), x, axis, block)
        return (x.to(scale.dtype) - start) * step

    return Call(dequantize, (node.tensor(0), node.tensor(1), node.tensor(2)))


def _one_zero(node: NodeView) -> int | None:
    """The zero point when it is known, and the same everywhere."""
    if node.input(2) is None:
        return 0
    zeros = node.constant(2)
    if zeros is None or zeros.size == 0 or (zeros != zeros.reshape(-1)[0]).any():
        return None
    return int(zeros.reshape(-1)[0])


def _traceable(
    x: Tensor, scale: Tensor, zero: Tensor | None, axis: int, block: int, dtype: ir.DataType
) -> Tensor:
    """The two operators themselves, which `torch.onnx` writes as they are."""
    start = torch.zeros_like(scale) if zero is None else zero
    grid = (scale, start.to(torch_type(dtype)))
    attributes = {"axis": axis, "block_size": block} if block else {"axis": axis}
    symbolic = torch.onnx.ops.symbolic
    quantized = symbolic(
        "QuantizeLinear", (x, *grid), attributes, dtype=torch_type(dtype), shape=x.shape
    )
    return symbolic(
        "DequantizeLinear", (quantized, *grid), attributes, dtype=scale.dtype, shape=x.shape
    )


def _quantized_from(node: NodeView) -> NodeView | None:
    """The QuantizeLinear that a DequantizeLinear undoes."""
    value = node.input(0)
    maker = None if value is None else value.producer()
    if maker is None or maker.op_type != "QuantizeLinear" or not is_standard(maker):
        return None
    source = node.beside(maker)
    same = all(source.input(index) is node.input(index) for index in (1, 2)) and all(
        source.int_attribute(name, default) == node.int_attribute(name, default)
        for name, default in (("axis", 1), ("block_size", 0))
    )
    known = source.input(0)
    is_float = known is not None and (known.dtype is None or known.dtype.is_floating_point())
    return source if same and is_float else None


def _stored_type(node: NodeView) -> ir.DataType:
    tensor = stored(node.input(0))
    assert tensor is not None
    return tensor.dtype


def _dynamic_quantize(node: NodeView) -> Call:
    """Scale and zero point of uint8 from the range of the data, 0 included; no gradient to them."""

    def dynamic_quantize(x: Tensor) -> Any:
        with torch.no_grad():
            low, high = x.min().clamp(max=0.0), x.max().clamp(min=0.0)
            scale = (high - low) / 255
            zero = torch.round(torch.clamp(-low / scale, 0, 255))
        return Quantize.apply(x, scale, zero, 0, 255), scale, zero

    return Call(dynamic_quantize, (node.tensor(0),))


def _centred(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """Integers, or floats that stand for them, less their zero point; in float."""
    x = x if x.is_floating_point() else x.float()
    return x if zero is None else x - aligned(zero.to(x.dtype), x, axis, 0)


def _conv_integer(node: NodeView) -> Call:
    conv = convolution(node, rank_of(node.input(1)))

    def conv_integer(x: Tensor, weight: Tensor, zero: Tensor | None, start: Tensor | None) -> Any:
        return conv(_centred(x, zero, 1), _centred(weight, start, 0), None)

    return Call(conv_integer, tuple(node.tensor(index) for index in range(4)))


def _matmul_integer(node: NodeView) -> Call:
    def matmul_integer(x: Tensor, y: Tensor, zero: Tensor | None, start: Tensor | None) -> Tensor:
        return torch.matmul(_centred(x, zero, -2), _centred(y, start, -1))

    return Call(matmul_integer, tuple(node.tensor(index) for index in range(4)))


def _linear(node: NodeView, product: Callable[..., Tensor], axes: tuple[int, int]) -> Call:
    """Dequantize both sides, combine, quantize: the inputs of QLinearConv and QLinearMatMul."""
    low, high = range_of(_type_of(node, 7))

    def linear(
        x: Tensor,
        x_scale: Tensor,
        x_zero: Tensor,
        y: Tensor,
        y_scale: Tensor,
        y_zero: Tensor,
        scale: Tensor,
        zero: Tensor,
        *bias: Tensor | None,
    ) -> Tensor:
        left = _centred(x, x_zero, axes[0]) * aligned(x_scale, x, axes[0], 0)
        right = _centred(y, y_zero, axes[1]) * aligned(y_scale, y, axes[1], 0)
        shift = None
        if bias and bias[0] is not None:
            shift = bias[0].to(scale.dtype) * (x_scale * y_scale)
        result = product(left, right, shift)
        return Quantize.apply(
            result, scale.reshape(()), zero.to(scale.dtype).reshape(()), low, high
        )

    count = max(len(node.node.inputs), 8)
    return Call(linear, tuple(Operand(node.input(at), Form.TENSOR) for at in range(count)))


def _qlinear_conv(node: NodeView) -> Call:
    return _linear(node, convolution(node, rank_of(node.input(3))), (1, 0))


def _qlinear_matmul(node: NodeView) -> Call:
    return _linear(node, lambda x, y, _: torch.matmul(x, y), (-2, -1))


BUILDERS: dict[str, Builder] = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize,
}
