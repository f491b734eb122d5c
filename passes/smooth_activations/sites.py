"""Where the channels of an activation can be scaled: what makes it, and what reads it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxopt.analysis import values
from onnxopt.calibration import layer_input
from onnxopt.numerics.layer_inputs import ConvolutionInput, LayerInput
from onnxopt.op_traits import is_standard
from onnxopt.pass_contract import Refusal
from onnxopt.rewriting import Context, Refuse

from ..fuse_affine.linear import AFTER, BEFORE, Edit
from ..fuse_affine.paths import carry, runtime_idiom
from ..shared.affine import Affine, Array, read_step, round_to

__all__ = ["Layer", "Site", "sites"]

_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
#: What a factor for each channel passes, if it is positive.
_PATH = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool"})
#: From so many products for each number on, one product more does not count.
_WIDE = 256


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer that reads the activation.

    Attributes:
        node: Conv, Gemm or MatMul.
        input: How the activation becomes rows.
        matrix: Its weights, [groups, K, M].
    """

    node: ir.Node
    input: LayerInput
    matrix: Array


@dataclasses.dataclass(frozen=True)
class Site:
    """An activation whose channels can be scaled.

    Attributes:
        value: The activation.
        axis: Axis of its channels: 1, or -1 (the last).
        channels: How many there are.
        layers: What reads it and can take the factors into its weights.
        others: What reads it besides: nodes, and which input.
        refusal: Why what makes the activation cannot scale it; empty if it can.
    """

    value: ir.Value
    axis: int
    channels: int
    layers: tuple[Layer, ...]
    others: tuple[tuple[ir.Node, int], ...]
    refusal: str = ""

    @property
    def multiplies(self) -> bool:
        """Whether a product has to be computed that was not before."""
        return bool(self.refusal or self.others)

    @property
    def is_wide(self) -> bool:
        """Whether the layers compute so much that one product more does not count."""
        return bool(sum(layer.matrix.shape[2] for layer in self.layers) >= _WIDE)

    def shaped(self, factors: Array) -> Array:
        """Factors so that they broadcast against the activation."""
        first = self.layers[0].input
        if not isinstance(first, ConvolutionInput):
            return factors
        return factors.reshape(-1, *[1] * len(first.kernel))

    def maker_edits(self, factors: Array, context: Context) -> list[Edit]:
        """New constants for what makes the activation, so that it comes out divided by factors.

        Raises:
            Refuse: When it has no constants that can take them.
        """
        divided = Affine(1.0 / self.shaped(factors), np.array(0.0))
        return list(_maker_edits(self.value, divided, self.axis, context))

    def layer_edits(self, factors: Array) -> list[Edit]:
        """New constants for the layers, which take an activation divided by factors.

        Raises:
            Refuse: When some cannot take them.
        """
        times = Affine(self.shaped(factors), np.array(0.0))
        return [BEFORE[layer.node.op_type](layer.node, times) for layer in self.layers]


def sites(model: ir.Model) -> Iterator[Site | Refusal]:
    """Activations of the main graph that layers read, or why they are left alone."""
    context = Context(model)
    for value in [*model.graph.inputs, *(out for node in model.graph for out in node.outputs)]:
        layers = _layers(value)
        if not layers:
            continue
        try:
            yield _site(value, layers, context)
        except Refuse as refusal:
            yield Refusal("smooth", str(refusal), layers[0].node.name or layers[0].node.op_type)


def _layers(value: ir.Value) -> tuple[Layer, ...]:
    found = []
    for node, index in value.uses():
        if index != 0 or node.op_type not in _LAYERS or not is_standard(node):
            continue
        weights = values.constant_array(node.inputs[1]) if node.graph is value.graph else None
        if weights is None or weights.dtype != np.float32:
            continue
        try:
            how = layer_input(node)
        except Refuse:
            continue
        if how is not None:
            found.append(Layer(node, how, how.matrix(weights)))
    return tuple(found)


def _site(value: ir.Value, layers: tuple[Layer, ...], context: Context) -> Site:
    convolutions = [layer for layer in layers if isinstance(layer.input, ConvolutionInput)]
    if convolutions and len(convolutions) < len(layers):
        raise Refuse("layers read its channels along different axes")
    counts = {_channels(layer) for layer in layers}
    if len(counts) > 1:
        raise Refuse("layers read different numbers of channels")
    reading = {(layer.node, 0) for layer in layers}
    others = tuple((node, index) for node, index in value.uses() if (node, index) not in reading)
    site = Site(value, 1 if convolutions else -1, counts.pop(), layers, others)
    ones = np.ones(site.channels)
    site.layer_edits(ones)  # refuses what cannot take factors
    try:
        if value.is_graph_output():
            raise Refuse("it is a graph output")
        if any(node.graph is not value.graph for node, _ in others):
            raise Refuse("the body of control flow reads it too")
        site.maker_edits(ones, context)
    except Refuse as refusal:
        site = dataclasses.replace(site, others=(), refusal=str(refusal))
    if site.multiplies and not site.is_wide:
        raise Refuse(site.refusal or "something else reads it too")
    return site


def _channels(layer: Layer) -> int:
    columns = layer.matrix.shape[0] * layer.matrix.shape[1]
    if isinstance(layer.input, ConvolutionInput):
        columns //= math.prod(layer.input.kernel)
    return int(columns)


def _maker_edits(value: ir.Value, affine: Affine, axis: int, context: Context) -> Iterator[Edit]:
    while True:
        node = value.producer()
        if node is None:
            raise Refuse("it is an input of the model")
        if not is_standard(node):
            raise Refuse(f"{node.op_type} has no constants that scale its channels")
        if node.op_type in AFTER and not (axis == 1 and node.op_type == "MatMul"):
            yield AFTER[node.op_type](node, affine)
            return
        if node.op_type in _PATH:
            affine = carry(node, 0, affine)
            value = _only_read(node.inputs[0])
            continue
        step = read_step(node, context)
        if step is None or len(node.inputs) != 2:
            raise Refuse(f"{node.op_type} has no constants that scale its channels")
        if (reason := runtime_idiom(step, context)) is not None:
            raise Refuse(reason)
        yield _scaled_step(node, affine)
        if node.op_type in ("Mul", "Div"):
            return
        value = _only_read(step.source)


def _only_read(value: ir.Value | None) -> ir.Value:
    if value is None or not values.has_one_use(value):
        raise Refuse("something else reads what it is made of")
    return value


def _scaled_step(node: ir.Node, affine: Affine) -> Edit:
    """The constant of Mul, Add, ... times the factors."""
    index = 1 if values.is_constant(node.inputs[1]) else 0
    if node.op_type in ("Div", "Sub") and index == 0:
        raise Refuse("the constant is what is divided or subtracted from")
    array = values.constant_array(node.inputs[index])
    tensor = values.constant(node.inputs[index])
    assert array is not None
    assert tensor is not None
    factor = 1.0 / affine.scale if node.op_type == "Div" else affine.scale
    wide = array.astype(np.float64) * factor
    if wide.size > max(array.size, factor.size):
        raise Refuse("a constant varies along another axis than the channels")
    return Edit(node, {index: round_to(wide, tensor.dtype, factors=True)})
