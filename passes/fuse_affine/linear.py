"""How an affine step goes into the constants of the linear operator before or after it.

Let the operator be y = W x + b. A step after it gives s y + t = (s W) x + (s b + t), with s and t
along the output channels. A step before it gives W (s x + t) + b = (W s) x + (b + W t), with s and
t along the input channels; a padding of zeros pads the step's output, so the shift goes in only
where nothing is padded. The other operators here scale and shift by channel themselves, and only
take in a step after them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from onnxopt.analysis import values
from onnxopt.analysis.attributes import (
    float_attribute,
    int_attribute,
    ints_attribute,
    string_attribute,
)
from onnxopt.rewriting import Refuse, Rewriter

from ..shared.affine import Affine, Array, batch_norm_statistics, round_to, scaled

__all__ = ["AFTER", "BEFORE", "Edit", "is_unpadded"]

#: A weight that others read too may be copied when it has at most so many elements.
_SMALL_WEIGHT = 1024
#: Coefficients of Gemm stay within this and its inverse.
_MIN_COEFFICIENT = 1e-30


@dataclasses.dataclass
class Edit:
    """New constants for a node.

    Attributes:
        node: The node that takes them.
        constants: The new numbers by input index, in their element type.
        attributes: New values of attributes; None removes one.
    """

    node: ir.Node
    constants: dict[int, Array] = dataclasses.field(default_factory=dict)
    attributes: dict[str, float | None] = dataclasses.field(default_factory=dict)

    def apply(self, rewriter: Rewriter) -> None:
        """Give the node its new constants."""
        rewriter.insert_before(self.node)
        inputs = list(self.node.inputs)
        for index, array in sorted(self.constants.items()):
            inputs.extend([None] * (index + 1 - len(inputs)))
            old = inputs[index]
            like = old if old is not None else inputs[1]
            stem = ((like.name if like is not None else None) or "weight").partition("_folded")[0]
            name = f"{stem}_folded" if old is not None else f"{stem}_bias"
            inputs[index] = rewriter.initializer(array, name)
        rewriter.set_inputs(self.node, inputs)
        for name, value in self.attributes.items():
            rewriter.set_attribute(self.node, name, value)


@dataclasses.dataclass(frozen=True)
class _Weight:
    """A constant operand that is about to change."""

    value: ir.Value
    array: Array

    @property
    def dtype(self) -> ir.DataType:
        return _dtype_of(self.value)

    @classmethod
    def of(cls, node: ir.Node, index: int) -> _Weight:
        value = node.inputs[index]
        array = values.constant_array(value)
        if value is None or array is None:
            raise Refuse("the weights are not constant")
        if not _dtype_of(value).is_floating_point() or array.size == 0:
            raise Refuse("the weights are not floating-point numbers")
        if array.size > _SMALL_WEIGHT and not values.has_one_use(value):
            raise Refuse("the weights have other readers")
        return cls(value, array)


def _bias(node: ir.Node, index: int, size: int) -> Array:
    """A bias along the channels in float64, zeros when there is none."""
    if len(node.inputs) <= index or node.inputs[index] is None:
        return np.zeros(size)
    array = values.constant_array(node.inputs[index])
    if array is None:
        raise Refuse("the bias is not constant")
    return array.astype(np.float64)


def _put_bias(edit: Edit, index: int, bias: Array, weight: _Weight) -> None:
    """Note a new bias, unless there was none and none is needed."""
    has_one = len(edit.node.inputs) > index and edit.node.inputs[index] is not None
    if has_one or bias.any():
        edit.constants[index] = round_to(bias, weight.dtype)


# Convolutions: W is [M, C/g, ...], transposed [C, M/g, ...]


def _groups(node: ir.Node, weight: Array) -> tuple[int, int, int]:
    """Groups, input channels and output channels."""
    groups = int_attribute(node, "group", 1)
    if weight.ndim < 3 or groups < 1 or weight.shape[0] % groups:
        raise Refuse("the weights do not fit the groups")
    if node.op_type == "Conv":
        return groups, weight.shape[1] * groups, weight.shape[0]
    return groups, weight.shape[0], weight.shape[1] * groups


def _conv_after(node: ir.Node, affine: Affine) -> Edit:
    weight = _Weight.of(node, 1)
    groups, _, channels = _groups(node, weight.array)
    scale, shift = affine.along(1, weight.array.ndim, channels)
    edit = Edit(node)
    if affine.scales:
        grouped, factor = _by_group(node, weight.array, groups, scale, of_output=True)
        edit.constants[1] = scaled(grouped, factor).reshape(weight.array.shape)
    _put_bias(edit, 2, _bias(node, 2, channels) * scale + shift, weight)
    return edit


def _conv_before(node: ir.Node, affine: Affine) -> Edit:
    weight = _Weight.of(node, 1)
    groups, inputs, channels = _groups(node, weight.array)
    scale, shift = affine.along(1, weight.array.ndim, inputs)
    edit = Edit(node)
    if affine.shifts:
        if node.op_type == "ConvTranspose":
            raise Refuse("a shift before a transposed convolution is not uniform after it")
        if not is_unpadded(node, weight.array.shape[2:]):
            raise Refuse("the convolution pads with zeros, which the shift does not reach")
        taps = weight.array.sum(axis=tuple(range(2, weight.array.ndim)), dtype=np.float64)
        taps = taps.reshape(groups, channels // groups, inputs // groups)
        added = (taps @ shift.reshape(groups, inputs // groups, 1)).reshape(-1)
        _put_bias(edit, 2, _bias(node, 2, channels) + added, weight)
    if affine.scales:
        grouped, factor = _by_group(node, weight.array, groups, scale, of_output=False)
        edit.constants[1] = scaled(grouped, factor).reshape(weight.array.shape)
    return edit


def _by_group(
    node: ir.Node, weight: Array, groups: int, scale: Array, *, of_output: bool
) -> tuple[Array, Array]:
    """The weight with a group axis in front, and the scale shaped to multiply it."""
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    channel_axis = 1 if of_output == (node.op_type == "Conv") else 2
    shape = [1] * grouped.ndim
    shape[0], shape[channel_axis] = groups, grouped.shape[channel_axis]
    return grouped, scale.reshape(shape)


def is_unpadded(node: ir.Node, kernel: tuple[int, ...]) -> bool:
    """Whether a convolution or pooling certainly reads nothing outside its input."""
    match string_attribute(node, "auto_pad", "NOTSET"):
        case "NOTSET" | "":
            return not any(ints_attribute(node, "pads") or ())
        case "VALID":
            return True
        case "SAME_UPPER" | "SAME_LOWER":
            return all(size == 1 for size in kernel)
    return False


# Gemm: alpha A' B' + beta C, where A' and B' may be transposed


def _gemm_after(node: ir.Node, affine: Affine) -> Edit:
    if not values.is_constant(node.inputs[1]) or (
        affine.is_uniform and not values.has_one_use(_required(node, 1))
    ):
        return _gemm_by_coefficients(node, affine)
    weight = _Weight.of(node, 1)
    axis = 0 if int_attribute(node, "transB", 0) else 1
    channels = weight.array.shape[axis]
    scale, shift = affine.along(1, 2, channels)
    edit = Edit(node)
    if affine.scales:
        factor = scale.reshape((-1, 1) if axis == 0 else (1, -1))
        edit.constants[1] = scaled(weight.array, factor)
    _put_gemm_bias(edit, weight.value, scale, shift, channels)
    return edit


def _gemm_by_coefficients(node: ir.Node, affine: Affine) -> Edit:
    """One scale for the whole output needs no constant weight: alpha and beta take it."""
    if not affine.is_uniform:
        raise Refuse("the weights are not constant")
    if affine.shifts:
        raise Refuse("a shift needs constant weights")
    if max(affine.scale.ndim, affine.shift.ndim) > 2:
        raise Refuse("a constant has more dimensions than the tensor")
    factor = float(affine.scale.reshape(()))
    coefficients: dict[str, float | None] = {}
    for name in ("alpha", "beta"):
        product = float_attribute(node, name, 1.0) * factor
        if not _MIN_COEFFICIENT <= abs(product) <= 1 / _MIN_COEFFICIENT and product:
            raise Refuse("a coefficient of Gemm would leave the range of float")
        if _dtype(node) == ir.DataType.DOUBLE and float(np.float32(product)) != product:
            raise Refuse("the coefficients of Gemm hold no doubles")
        coefficients[name] = product
    return Edit(node, {}, coefficients)


def _dtype(node: ir.Node) -> ir.DataType | None:
    """Element type, as far as an operand or the result tells."""
    known = [value.dtype for value in (*node.inputs, *node.outputs) if value is not None]
    return next((dtype for dtype in known if dtype is not None), ir.DataType.DOUBLE)


def _put_gemm_bias(edit: Edit, weight: ir.Value, scale: Array, shift: Array, channels: int) -> None:
    node = edit.node
    beta = float_attribute(node, "beta", 1.0)
    before = _bias(node, 2, 1) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    bias = (0.0 if before is None else before * beta * scale) + shift
    if before is None and not shift.any():
        return
    if bias.ndim > 2 or bias.size > max(channels, 0 if before is None else before.size):
        raise Refuse("the bias would grow")
    if bias.size > max(channels, _SMALL_WEIGHT) and not values.has_one_use(_required(node, 2)):
        raise Refuse("the bias has other readers")
    edit.constants[2] = round_to(bias, _dtype_of(weight))
    edit.attributes["beta"] = 1.0


def _gemm_before(node: ir.Node, affine: Affine) -> Edit:
    weight = _Weight.of(node, 1)
    if weight.array.ndim != 2:
        raise Refuse("the weights are no matrix")
    if int_attribute(node, "transA", 0):
        if not affine.is_uniform:
            raise Refuse("the operand is transposed")
        affine = affine.uniform()
    transposed = bool(int_attribute(node, "transB", 0))
    inputs, channels = weight.array.shape[::-1] if transposed else weight.array.shape
    scale, shift = affine.along(1, 2, inputs)
    edit = Edit(node)
    if affine.shifts:
        matrix = weight.array.T if transposed else weight.array
        added = float_attribute(node, "alpha", 1.0) * (shift @ matrix.astype(np.float64))
        _put_gemm_bias(edit, weight.value, np.ones(1), added, channels)
    if affine.scales:
        factor = scale.reshape((1, -1) if transposed else (-1, 1))
        edit.constants[1] = scaled(weight.array, factor)
    return edit


# MatMul has no bias: it takes in scales only


def _matmul_after(node: ir.Node, affine: Affine) -> Edit:
    if affine.shifts:
        raise Refuse("MatMul has no bias")
    index, weight = _matmul_weight(node)
    rank = values.rank(node.outputs[0]) or (1 if affine.scale.ndim <= 1 else None)
    if rank is None:
        raise Refuse("the rank is unknown")
    if index == 0:
        if affine.scale.ndim > rank:
            raise Refuse("a constant has more dimensions than the tensor")
        return _matmul_uniform(node, weight, index, affine)
    scale, _ = affine.along(rank - 1, rank, weight.array.shape[-1])
    return _matmul_scaled(node, weight, index, scale)


def _matmul_before(node: ir.Node, affine: Affine) -> Edit:
    if affine.shifts:
        raise Refuse("MatMul has no bias")
    index, weight = _matmul_weight(node)
    if index == 0:
        return _matmul_uniform(node, weight, index, affine)
    rank = values.rank(node.inputs[0]) or (1 if affine.scale.ndim <= 1 else None)
    if rank is None:
        raise Refuse("the rank is unknown")
    scale, _ = affine.along(rank - 1, rank, weight.array.shape[-2])
    return _matmul_scaled(node, weight, index, scale[:, np.newaxis])


def _matmul_weight(node: ir.Node) -> tuple[int, _Weight]:
    index = 1 if values.is_constant(node.inputs[1]) else 0
    weight = _Weight.of(node, index)
    if weight.array.ndim < 2:
        raise Refuse("the weights are no matrix")
    return index, weight


def _matmul_uniform(node: ir.Node, weight: _Weight, index: int, affine: Affine) -> Edit:
    if not affine.is_uniform:
        raise Refuse("the weights stand on the left and the scale is no single number")
    return _matmul_scaled(node, weight, index, affine.uniform().scale)


def _matmul_scaled(node: ir.Node, weight: _Weight, index: int, scale: Array) -> Edit:
    factor = scale.reshape((1,) * (weight.array.ndim - scale.ndim) + scale.shape)
    return Edit(node, {index: scaled(weight.array, factor)})


# Normalizations end in a scale and a bias of their own


def _normalization_after(node: ir.Node, affine: Affine) -> Edit:
    own, bias = _required(node, 1), node.inputs[2] if len(node.inputs) > 2 else None
    scale, before = values.constant_array(own), values.constant_array(bias)
    if scale is None or (bias is not None and before is None):
        raise Refuse("scale or bias of the normalization is not constant")
    if node.op_type == "LayerNormalization":
        factor, shift = affine.scale, affine.shift
        if np.broadcast_shapes(factor.shape, shift.shape, scale.shape) != scale.shape:
            raise Refuse("a constant varies along another axis than the normalized ones")
    else:
        rank = values.rank(node.outputs[0])
        if rank is None:
            raise Refuse("the rank is unknown")
        factor, shift = affine.along(1, rank, scale.size)
    new_scale = scale.astype(np.float64) * factor
    new_bias = np.broadcast_to((0.0 if before is None else before * factor) + shift, scale.shape)
    edit = Edit(node, {1: round_to(new_scale, _dtype_of(own), factors=True)})
    if bias is not None or new_bias.any():
        edit.constants[2] = round_to(new_bias, _dtype_of(own))
    return edit


def _batch_norm_before(node: ir.Node, affine: Affine) -> Edit:
    """g/d (s x + t - m) + b = (g s/d) (x - m) + b + g/d (t + (s - 1) m)."""
    gain, bias, mean, deviation = batch_norm_statistics(node)
    rank = values.rank(node.inputs[0])
    if rank is None:
        raise Refuse("the rank is unknown")
    scale, shift = affine.along(1, rank, gain.size)
    own, own_bias = _required(node, 1), _required(node, 2)
    moved = bias + gain / deviation * (shift + (scale - 1) * mean)
    edit = Edit(node, {1: round_to(gain * scale, _dtype_of(own), factors=True)})
    edit.constants[2] = round_to(moved, _dtype_of(own_bias))
    return edit


def _dtype_of(constant: ir.Value) -> ir.DataType:
    tensor = values.constant(constant)
    assert tensor is not None
    return tensor.dtype


def _required(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise Refuse("an operand is missing")
    return value


#: How each operator takes in a step after it.
AFTER: Mapping[str, Callable[[ir.Node, Affine], Edit]] = {
    "Conv": _conv_after,
    "ConvTranspose": _conv_after,
    "Gemm": _gemm_after,
    "MatMul": _matmul_after,
    "LayerNormalization": _normalization_after,
    "InstanceNormalization": _normalization_after,
}
#: How each operator takes in a step before it.
BEFORE: Mapping[str, Callable[[ir.Node, Affine], Edit]] = {
    "Conv": _conv_before,
    "ConvTranspose": _conv_before,
    "Gemm": _gemm_before,
    "MatMul": _matmul_before,
    "BatchNormalization": _batch_norm_before,
}
