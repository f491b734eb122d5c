"""Carry out the removal of channels: slice weights, fold constants, adapt sizes and shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.analysis.attributes import float_attribute
from onnxopt.analysis.values import constant_array, has_one_use
from onnxopt.channels import (
    AxisRef,
    Cell,
    GatherIndices,
    GroupCount,
    HiddenSize,
    Layer,
    Operand,
    SizeInput,
    SliceBounds,
    SplitSizes,
)
from onnxopt.rewriting import Context, Rewriter, drop_unused_initializer

from .border_carriers import take_over
from .choice import Choice
from .folding import fold

__all__ = ["remove"]


def remove(choice: Choice, context: Context) -> None:
    """Remove what was chosen from the graph."""
    removal = _Removal(choice, context)
    for layer in choice.trace.layers:
        removal.layer(layer)
    for cell in choice.trace.cells:
        removal.cell(cell)
    for follower in choice.trace.followers:
        match follower:
            case Operand():
                removal.operand(follower)
            case SizeInput():
                removal.size(follower)
            case GroupCount():
                removal.group(follower)
            case HiddenSize():
                removal.hidden(follower)
            case SplitSizes():
                removal.split(follower)
            case SliceBounds():
                removal.bounds(follower)
            case GatherIndices():
                removal.indices(follower)
    removal.write()
    removal.shapes()


class _Removal:
    """New constants are gathered by the node and input they are for, and written in the end."""

    def __init__(self, choice: Choice, context: Context) -> None:
        self.choice = choice
        self.context = context
        self._arrays: dict[tuple[ir.Node, int], NDArray[Any]] = {}

    def layer(self, layer: Layer) -> None:
        """Slice the weights and bias of a layer, after constants are folded into them."""
        kept_inputs = self._by_group(layer, layer.inputs)
        kept_outputs = self._by_group(layer, layer.outputs)
        if kept_inputs is None and kept_outputs is None:
            return
        folded = None
        if kept_inputs is not None:
            folded = fold(layer, self.choice.folded(layer), self.choice.carriers(layer))
            if folded.steps is not None:
                self._add_steps(layer, folded.steps)
            if folded.bias is not None:
                self._add_bias(layer, folded.bias)
        blocks = folded.blocks if folded is not None else None
        if blocks is None:
            blocks = layer.blocks_of(layer.weights.stored)
        if (taken := self.choice.takeovers(layer)) and kept_inputs is not None:
            blocks = take_over(layer, blocks, taken)
        for axis, kept in ((1, kept_inputs), (2, kept_outputs)):
            if kept is not None:
                parts = [
                    block.compress(each, axis - 1) for block, each in zip(blocks, kept, strict=True)
                ]
                blocks = np.stack(parts)
        self._arrays[layer.weights.node, layer.weights.index] = layer.weights_of(blocks)

    def cell(self, cell: Cell) -> None:
        """Fold constants into the biases of a recurrent layer."""
        bias = self.choice.folded_into(cell)
        if bias is None:
            return
        node = cell.node
        is_new = len(node.inputs) < 4 or node.inputs[3] is None
        self._arrays[node, 3] = bias.astype(cell.bias.dtype)
        if is_new and (units := cell.output) is not None:
            repeats = bias.shape[1] // cell.units.shape[1]
            self.operand(Operand(node, 3, 1, units, repeats))  # nobody else knows of it

    def operand(self, follower: Operand) -> None:
        """Slice a constant with one slice for each channel."""
        kept = self.choice.keeps(follower.channels)
        if not kept.all():
            array = self._array(follower.node, follower.index)
            assert array is not None
            every = np.tile(kept, follower.repeats)
            self._arrays[follower.node, follower.index] = array.compress(every, follower.axis)

    def size(self, follower: SizeInput) -> None:
        """Count the channels that are left."""
        kept = self.choice.keeps(follower.channels)
        if not kept.all():
            self._set_element(follower.node, follower.index, follower.position, int(kept.sum()))

    def group(self, follower: GroupCount) -> None:
        """Let a depthwise convolution have as many groups as channels."""
        kept = self.choice.keeps(follower.channels)
        if not kept.all():
            self._rewriter(follower.node).set_attribute(follower.node, "group", int(kept.sum()))

    def hidden(self, follower: HiddenSize) -> None:
        """Let a recurrent layer have as many units as are left."""
        kept = self.choice.keeps(follower.channels)
        if not kept.all():
            rewriter = self._rewriter(follower.node)
            rewriter.set_attribute(follower.node, "hidden_size", int(kept.sum()))

    def split(self, follower: SplitSizes) -> None:
        """State the sizes of the parts."""
        node = follower.node
        outputs = [AxisRef(output, follower.axis) for output in node.outputs]
        atoms = self.choice.trace.atoms
        # A part of one channel, or none, is not followed: it stays as it is.
        sizes = [
            int(self.choice.keeps(each).sum()) if each.value in atoms else size
            for each, size in zip(outputs, follower.sizes, strict=True)
        ]
        if sizes == list(follower.sizes):
            return
        if self.context.opset(node) < 13:
            self._rewriter(node).set_attribute(node, "split", sizes)
            return
        self._rewriter(node).set_attribute(node, "num_outputs", None)
        self._arrays[node, 1] = np.array(sizes, np.int64)

    def bounds(self, follower: SliceBounds) -> None:
        """Count the channels that are left before the start and before the end."""
        node, kept = follower.node, self.choice.keeps(follower.channels)
        if kept.all():
            return
        start, end = int(kept[: follower.start].sum()), int(kept[: follower.end].sum())
        for name, index, number in (("starts", 1, start), ("ends", 2, end)):
            attribute = node.attributes.get(name)
            if attribute is None:
                self._set_element(node, index, follower.position, number)
            else:
                numbers = list(attribute.as_ints())
                numbers[follower.position] = number
                self._rewriter(node).set_attribute(node, name, numbers)

    def indices(self, follower: GatherIndices) -> None:
        """Renumber the channels that are chosen, without those that are gone."""
        kept = self.choice.keeps(follower.channels)
        if kept.all():
            return
        array = self._array(follower.node, 1)
        assert array is not None
        chosen = array % len(kept)
        numbers = np.cumsum(kept) - 1
        left = chosen[kept[chosen]] if chosen.ndim else chosen
        self._arrays[follower.node, 1] = numbers[left].astype(array.dtype)

    def write(self) -> None:
        """Give the nodes their new constants, under the old names unless others read those."""
        for (node, index), array in self._arrays.items():
            old = node.inputs[index] if index < len(node.inputs) else None
            if old is not None and old.is_initializer() and has_one_use(old):
                old.const_value = ir.Tensor(
                    np.ascontiguousarray(array), dtype=old.dtype, name=old.name
                )
                old.shape = ir.Shape(array.shape)
                _restate(node, index, array)
                continue
            hint = (old.name if old is not None else None) or f"{node.outputs[0].name}_constant"
            rewriter = Rewriter(self.context, node)
            new = rewriter.initializer(array, hint, like=old)
            if index >= len(node.inputs):
                node.resize_inputs(index + 1)
            node.replace_input_with(index, new)
            _restate(node, index, array)
            if old is not None:
                _drop(old)

    def shapes(self) -> None:
        """State the shapes as they are now."""
        for value, ids in self.choice.trace.atoms.items():
            if value.shape is None:
                continue
            dims = list(value.shape.dims)
            for axis, size in enumerate(ids.shape):
                if size > 1:
                    dims[axis] = int(self.choice.keeps(AxisRef(value, axis)).sum())
            value.shape = ir.Shape(dims)

    def _by_group(self, layer: Layer, atoms: NDArray[np.int64] | None) -> NDArray[np.bool_] | None:
        """Which channels are kept [groups, channels a group]; None when all are."""
        if atoms is None or not self.choice.removed[atoms].any():
            return None
        kept: NDArray[np.bool_] = ~self.choice.removed[atoms].reshape(layer.groups, -1)
        return kept

    def _add_bias(self, layer: Layer, added: NDArray[np.float64]) -> None:
        """Add to a bias: in its own integers, where it has such, else in numbers."""
        place = layer.bias_place
        assert place is not None
        node, index = place
        if layer.node.op_type == "MatMul":
            array = self._array(node, index)
            assert array is not None
            self._arrays[node, index] = (array.astype(np.float64) + added).astype(array.dtype)
            return
        weights, bias = node.inputs[1], layer.bias
        assert bias is not None
        assert weights is not None
        assert weights.dtype is not None
        given = layer.given_bias
        total = (bias + added).astype(weights.dtype.numpy())
        sliced = given is not None and given.stored.shape[-1:] == bias.shape
        if sliced and given is not None:
            total = total.reshape(given.stored.shape)
        self._arrays[node, index] = total
        if node.op_type == "Gemm" and float_attribute(node, "beta", 1.0) != 1.0:
            self._rewriter(node).set_attribute(node, "beta", 1.0)
        if layer.output is not None and not sliced:
            self.operand(Operand(node, index, 0, layer.output))  # nobody else knows of it

    def _add_steps(self, layer: Layer, added: NDArray[np.int64]) -> None:
        """Add to a bias of integers, or give the layer one: DequantizeLinear of integers."""
        given = layer.given_bias
        if given is not None:
            old = given.stored
            self._arrays[given.node, given.index] = (old + added).astype(old.dtype)
            return
        node, step = layer.node, layer.bias_step
        assert step is not None
        if layer.output is not None:
            kept = self.choice.keeps(layer.output)
            added, step = added[kept], step[kept]
        if layer.grid is not None and (place := layer.bias_place) is not None:
            self._arrays[place] = added.astype(np.int32)
            return
        rewriter = self._rewriter(node)
        hint = f"{node.outputs[0].name}_bias"
        stored = rewriter.initializer(added.astype(np.int32), hint)
        scale = rewriter.initializer(step.astype(np.float32), f"{hint}_scale")
        bias = rewriter.op("DequantizeLinear", [stored, scale], {"axis": 0}, name=f"{hint}_number")
        bias.type, bias.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(added.shape)
        node.resize_inputs(3)
        node.replace_input_with(2, bias)

    def _array(self, node: ir.Node, index: int) -> NDArray[Any] | None:
        """A constant input as it is by now."""
        if (node, index) in self._arrays:
            return self._arrays[node, index]
        return constant_array(node.inputs[index]) if index < len(node.inputs) else None

    def _set_element(self, node: ir.Node, index: int, position: int, number: int) -> None:
        array = self._array(node, index)
        assert array is not None
        changed = np.array(array)
        changed.reshape(-1)[position] = number
        self._arrays[node, index] = changed

    def _rewriter(self, node: ir.Node) -> Rewriter:
        return Rewriter(self.context, node)


def _restate(node: ir.Node, index: int, array: NDArray[Any]) -> None:
    """State the shape of dequantized weights, which is that of the integers."""
    if node.op_type == "DequantizeLinear" and index == 0:
        node.outputs[0].shape = ir.Shape(array.shape)


def _drop(value: ir.Value) -> None:
    """Remove a constant that nobody reads any more."""
    producer = value.producer()
    if producer is None:
        drop_unused_initializer(value)
    elif not value.uses() and not value.is_graph_output() and producer.graph is not None:
        producer.graph.remove(producer)
