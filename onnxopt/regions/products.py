"""Multiplications by constant weights, and what a kernel computes along with them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import clip_bounds, float_attribute, int_attribute
from onnxopt.analysis.values import constant, constant_array, has_one_use
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Refuse

__all__ = ["Clamp", "Product", "clamp_after", "moved_constant", "products"]

Array = np.ndarray[Any, Any]

#: Nodes between a constant and the layer that reads it which only move its numbers.
_MOVES = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_PRODUCTS = ("Conv", "Gemm", "MatMul")
#: Measured by `benchmarks.activation_products`.
_TWO_ACTIVATIONS = (
    "it multiplies two activations, and to quantize both takes the time that 8 bits save"
)


@dataclasses.dataclass(frozen=True)
class Clamp:
    """Relu or Clip behind a node that nothing else reads.

    Attributes:
        node: Relu or Clip.
        low: Lower bound; minus infinity where there is none.
        high: Upper bound.
    """

    node: ir.Node
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether a range of 8-bit numbers, which holds 0, can end where it cuts."""
        return self.low <= 0 <= self.high and self.low < self.high


@dataclasses.dataclass(frozen=True)
class Product:
    """A convolution or matrix product with constant weights.

    Attributes:
        node: Conv, Gemm or MatMul.
        weights: The weights in the layout of the kernel: [out, in / groups, ...] for Conv, [in,
            out] for the others, whatever the model stores. Constant, float32.
        bias: [out], or None.
        bias_node: The Add that holds the bias of a MatMul.
        clamp: Relu or Clip behind that.
    """

    node: ir.Node
    weights: Array
    bias: Array | None
    bias_node: ir.Node | None
    clamp: Clamp | None

    @property
    def key(self) -> str:
        """What it is called in plans; the same in a copy of the model."""
        return self.node.outputs[0].name or ""

    @property
    def activation(self) -> ir.Value:
        """What it multiplies."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def weight_inputs(self) -> tuple[int, ...]:
        """Positions of the inputs that hold its weights."""
        return (1,)

    @property
    def weight_count(self) -> int:
        """How many weights it has."""
        return int(self.weights.size)

    @property
    def channel_axis(self) -> int:
        """The axis of the weights that counts outputs."""
        return 0 if self.node.op_type == "Conv" else 1

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for the others."""
        return int_attribute(self.node, "group", 1)

    @property
    def unclamped(self) -> ir.Value:
        """The result before the clamp."""
        return (self.bias_node or self.node).outputs[0]

    @property
    def output(self) -> ir.Value:
        """The result of all of it."""
        return self.unclamped if self.clamp is None else self.clamp.node.outputs[0]

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All that it consists of."""
        clamp = None if self.clamp is None else self.clamp.node
        return tuple(node for node in (self.node, self.bias_node, clamp) if node is not None)


def products(graph: ir.Graph) -> Iterator[Product | tuple[ir.Node, str]]:
    """All products of a graph, in its order; for those that are left alone, the node and why."""
    for node in graph:
        if node.op_type in _PRODUCTS and is_standard(node):
            try:
                yield _product(node)
            except Refuse as refusal:
                yield node, str(refusal)
        elif node.op_type == "ConvTranspose" and is_standard(node):
            yield node, "the runtime has no 8-bit kernel for ConvTranspose"


def clamp_after(value: ir.Value) -> Clamp | None:
    """The Relu or Clip that alone reads a value."""
    if not has_one_use(value):
        return None
    ((node, index),) = value.uses()
    if index != 0 or not is_standard(node) or node.graph is not value.graph:
        return None
    if node.op_type == "Relu":
        return Clamp(node, 0.0, math.inf)
    if node.op_type != "Clip":
        return None
    try:
        low, high = clip_bounds(node)
    except Refuse:
        return None
    return Clamp(node, -math.inf if low is None else low, math.inf if high is None else high)


def _product(node: ir.Node) -> Product:
    source, weight = node.inputs[0], node.inputs[1]
    if source is None or weight is None:
        raise Refuse("an input is missing")
    if constant(source) is not None:
        raise Refuse("the activation is constant")
    weights = moved_constant(weight)
    if weights is None:
        producer = weight.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            raise Refuse("it is quantized already")
        raise Refuse(
            _TWO_ACTIVATIONS if node.op_type == "MatMul" else "its weights are not constant"
        )
    if weights.dtype != np.float32:
        raise Refuse(f"its weights are {weights.dtype}, and only float32 is quantized")
    if not np.isfinite(weights).all():
        raise Refuse("its weights are not all finite")
    bias_node: ir.Node | None = None
    match node.op_type:
        case "Conv":
            bias = _bias(node, weights.shape[0])
            if weights.ndim not in (3, 4):
                raise Refuse("the runtime has 8-bit convolutions of one and two dimensions only")
        case "Gemm":
            weights, bias = _gemm(node, weights)
        case _:
            if weights.ndim != 2:
                raise Refuse("its weights are no matrix")
            bias, bias_node = _added_bias(node, weights.shape[1])
    output = (bias_node or node).outputs[0]
    return Product(node, weights, bias, bias_node, clamp_after(output))


def moved_constant(value: ir.Value) -> Array | None:
    """A constant, read through nodes that only move its numbers."""
    array = constant_array(value)
    node = value.producer()
    if array is not None or node is None or node.op_type not in _MOVES or not is_standard(node):
        return array
    source = None if node.inputs[0] is None else moved_constant(node.inputs[0])
    if source is None:
        return None
    if node.op_type == "Identity":
        return source
    if node.op_type == "Transpose":
        permutation = node.attributes.get("perm")
        return source.transpose(None if permutation is None else tuple(permutation.as_ints()))
    if value.shape is None or not value.shape.is_static():
        return None
    return source.reshape(value.shape.numpy())


def _bias(node: ir.Node, outputs: int) -> Array | None:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    bias = moved_constant(node.inputs[2])
    if bias is None:
        raise Refuse("its bias is not constant")
    if bias.size == 1:
        bias = np.full(outputs, bias.reshape(-1)[0])
    if bias.size != outputs or max(bias.shape) != outputs:
        raise Refuse("its bias is no vector")
    return bias.reshape(-1).astype(np.float32)


def _gemm(node: ir.Node, weights: Array) -> tuple[Array, Array | None]:
    """Weights and bias of Gemm with its factors multiplied in: then alpha and beta are 1."""
    if int_attribute(node, "transA", 0):
        raise Refuse("its activation is transposed")
    if int_attribute(node, "transB", 0):
        weights = weights.T
    alpha, beta = float_attribute(node, "alpha", 1.0), float_attribute(node, "beta", 1.0)
    bias = _bias(node, weights.shape[1])
    scaled = weights if alpha == 1 else (weights * np.float32(alpha))
    return scaled, bias if bias is None or beta == 1 else bias * np.float32(beta)


def _added_bias(node: ir.Node, outputs: int) -> tuple[Array | None, ir.Node | None]:
    """The constant vector that is added to a MatMul, and the Add, if nothing else reads it."""
    output = node.outputs[0]
    if not has_one_use(output):
        return None, None
    ((add, index),) = output.uses()
    if add.op_type != "Add" or not is_standard(add) or add.graph is not node.graph:
        return None, None
    other = add.inputs[1 - index]
    bias = None if other is None else moved_constant(other)
    if bias is None or bias.dtype != np.float32 or bias.shape != (outputs,):
        return None, None
    return bias, add
