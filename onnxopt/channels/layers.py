"""Layers that mix channels: convolutions and matrix products with constant weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.analysis.attributes import float_attribute
from onnxopt.analysis.values import constant_array, has_one_use
from onnxopt.channels.atoms import Ids
from onnxopt.channels.followers import AxisRef
from onnxopt.channels.integers import INTEGER_PRODUCTS, Grid
from onnxopt.channels.known import Known, Mask
from onnxopt.channels.parameters import Parameter, scalar_scale
from onnxopt.op_traits import is_standard

__all__ = ["Layer"]

#: So many rows or columns are looked at before all of them: weights are seldom zero.
_SAMPLE = 8


@dataclasses.dataclass(eq=False)
class Layer:
    """A node whose output channels are linear in its input channels.

    Weights are seen as levels: numbers as they are, or integers with 0 for the number 0, of which
    ``scale`` says what a step stands for.

    Attributes:
        node: Conv, ConvTranspose, Gemm, MatMul, QLinearConv or QLinearMatMul.
        source: The axis that is summed over; None when its channels are not followed.
        inputs: Channels along it, in order; None with ``source``.
        output: The axis of what comes out; None when those are not followed.
        outputs: Channels along that.
        rank: Number of axes of what comes out.
        groups: Number of groups that do not mix; 1 for matrix products.
        uniform: Whether a constant input channel adds the same number everywhere: no padding
            that some outputs see and others do not.
        weights: Where the weights are stored.
        given_bias: Where the bias is stored; None when there is none, or for MatMul.
        grid: Of the integers that come in; None where numbers do.
    """

    node: ir.Node
    source: AxisRef | None
    inputs: Ids | None
    output: AxisRef | None
    outputs: Ids | None
    rank: int
    groups: int
    uniform: bool
    weights: Parameter
    given_bias: Parameter | None
    grid: Grid | None = None

    @property
    def input_scale(self) -> float | None:
        """What a step of the input stands for, where that is integers, dequantized or not."""
        source = self.node.inputs[0]
        assert source is not None
        return scalar_scale(source) if self.grid is None else self.grid.scale

    def given(self, known: Known | None) -> Known | None:
        """What is known of the input, in numbers."""
        return known if self.grid is None else self.grid.numbers(known)

    @property
    def blocks(self) -> NDArray[Any]:
        """The levels [groups, inputs a group, outputs a group, taps], a view where possible."""
        return self.blocks_of(self.weights.levels)

    def blocks_of(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Weights as the node holds them in the shape of `blocks`."""
        match self.node.op_type:
            case "Conv" | "QLinearConv":
                parted = weights.reshape(self.groups, -1, weights.shape[1], _taps(weights))
                return parted.transpose(0, 2, 1, 3)
            case "ConvTranspose":
                return weights.reshape(self.groups, -1, weights.shape[1], _taps(weights))
        return (weights.T if self._transposed else weights)[None, :, :, None]

    def weights_of(self, blocks: NDArray[Any]) -> NDArray[Any]:
        """Weights as the node holds them; the inverse of `blocks_of`, whatever the widths."""
        window = self.weights.stored.shape[2:]
        groups, inputs, outputs, _ = blocks.shape
        match self.node.op_type:
            case "Conv" | "QLinearConv":
                shape = (groups * outputs, inputs, *window)
                return blocks.transpose(0, 2, 1, 3).reshape(shape)
            case "ConvTranspose":
                return blocks.reshape(groups * inputs, outputs, *window)
        flat = blocks[0, :, :, 0]
        return flat.T if self._transposed else flat

    @property
    def width(self) -> int:
        """Number of output channels."""
        shape = self.weights.stored.shape
        match self.node.op_type:
            case "Conv" | "QLinearConv":
                return int(shape[0])
            case "ConvTranspose":
                return int(shape[1] * self.groups)
        return int(shape[0] if self._transposed else shape[1])

    @property
    def scale(self) -> float | NDArray[np.float64]:
        """What a product of a level with an input is multiplied by, one or by output channel."""
        factor = float_attribute(self.node, "alpha", 1.0) if self.node.op_type == "Gemm" else 1.0
        return factor if self.weights.scale is None else factor * self.weights.scale

    @property
    def bias(self) -> NDArray[np.float64] | None:
        """What is added to each output channel; None when it differs within a channel."""
        if self.given_bias is None:
            return np.zeros(self.width)
        array = self.given_bias.numbers
        if array.ndim == 2 and array.shape[0] != 1:
            return None
        factor = float_attribute(self.node, "beta", 1.0) if self.node.op_type == "Gemm" else 1.0
        return np.broadcast_to(array.reshape(-1) * factor, self.width)

    @property
    def bias_place(self) -> tuple[ir.Node, int] | None:
        """The node and input that can take a bias for each output channel; None when none can.

        For MatMul that is the constant of an Add that alone reads its output.
        """
        if self.grid is not None:
            index = INTEGER_PRODUCTS[self.node.op_type]
            return None if index is None else (self.node, index)
        if self.node.op_type != "MatMul":
            return (self.node, 2) if self.bias is not None else None
        product = self.node.outputs[0]
        add = product.consumers()[0] if has_one_use(product) else None
        if add is None or add.op_type != "Add" or not is_standard(add):
            return None
        if add.graph is not self.node.graph:
            return None
        index = 1 if add.inputs[0] is product else 0
        array = constant_array(add.inputs[index])
        if array is None or array.size != self.width or array.shape[-1:] != (self.width,):
            return None
        return (add, index) if array.ndim <= self.rank else None

    @property
    def bias_step(self) -> NDArray[np.float64] | None:
        """What a step of an integer bias stands for, by output channel.

        None unless weights and input are integers with scales: then the runtime adds the bias to
        sums of products of integers, so a step is the product of the two scales.
        """
        scale = self.input_scale
        if scale is None or self.weights.scale is None or "MatMul" in self.node.op_type:
            return None
        return np.broadcast_to(scale * self.weights.scale, self.width)

    def reads(self, outputs: Mask | None) -> Mask:
        """Which input channels some of the given outputs (None: all) depend on."""
        return _any_nonzero(self.blocks, outputs)

    def varies(self, inputs: Mask | None) -> Mask:
        """Which output channels depend on some of the given inputs (None: all)."""
        return _any_nonzero(self.blocks.transpose(0, 2, 1, 3), inputs)

    def transfer(self, known: Known | None, dtype: np.dtype[Any]) -> Known | None:
        """What is known of the outputs.

        A channel is constant when each input that it depends on is, and adds the same number
        everywhere: ``bias + sum_j c_j * sum(weights_j)``.
        """
        bias = self.bias
        if bias is None or self.output is None:
            return None
        taken: Mask | None = None
        if known is not None:
            mask, nonzero = known.mask.reshape(-1), known.nonzero.reshape(-1)
            taken = ~mask | (nonzero & (not self.uniform))
        constant = ~self.varies(taken)
        if not constant.any():
            return None
        values = bias.copy()
        if known is not None and self.uniform:
            values += self.contribution(known.numbers.reshape(-1))
        shape = [1] * self.rank
        shape[self.output.axis] = -1
        with np.errstate(over="ignore"):
            cast = values.astype(dtype)
        return Known(constant.reshape(shape), cast.reshape(shape))

    def contribution(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """What inputs that are constant everywhere, padding included, add to each output."""
        return self.levels_added(numbers) * self.scale

    def levels_added(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of products of numbers and levels, by output channel; see `contribution`."""
        blocks = self.blocks
        parts = numbers.reshape(self.groups, -1)
        sums = np.zeros((self.groups, blocks.shape[2]))
        for group in range(self.groups):
            used = np.flatnonzero(parts[group])
            if used.size:
                columns = blocks[group, used].astype(np.float64).sum(axis=-1)
                sums[group] = parts[group, used] @ columns
        return sums.reshape(-1)

    @property
    def _transposed(self) -> bool:
        attribute = self.node.attributes.get("transB") if self.node.op_type == "Gemm" else None
        return attribute is not None and attribute.as_int() != 0


def _taps(weights: NDArray[Any]) -> int:
    return int(np.prod(weights.shape[2:], dtype=np.int64))


def _any_nonzero(blocks: NDArray[Any], selected: Mask | None) -> Mask:
    """For each channel of axis 1, whether weights at selected channels of axis 2 are not 0."""
    groups, count, others, _ = blocks.shape
    result = np.zeros((groups, count), np.bool_)
    chosen = None if selected is None else selected.reshape(groups, others)
    for group in range(groups):
        places = np.arange(others) if chosen is None else np.flatnonzero(chosen[group])
        found = (blocks[group][:, places[:_SAMPLE]] != 0).any(axis=(1, 2))
        open_ = np.flatnonzero(~found)
        if open_.size and places.size > _SAMPLE:
            # Two steps, so that a copy is made of few channels only.
            found[open_] = (blocks[group][open_][:, places[_SAMPLE:]] != 0).any(axis=(1, 2))
        result[group] = found
    return result.reshape(-1)
