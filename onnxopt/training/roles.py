"""Which constants of a model are weights, told by what reads them.

A constant of floats is a weight when it is, perhaps after operators that only move or rescale it:

- weights or bias of a convolution, a matrix product, a recurrent layer; scale or bias of a
  normalization; slopes of PRelu; a table that Gather picks rows from;
- added to what layers made, as a vector along one axis (a bias) or as a table (a positional
  embedding), or multiplied with it as a vector along one axis (a scale).

Anything else stays what it is: epsilons, bounds, scales of a quantizer, sizes of Resize, attention
masks. In doubt a constant is no weight: then it trains less, and nothing breaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.op_traits import Trait, has_trait, is_standard
from onnxopt.training.batch_statistics import follows_batches
from onnxopt.training.grids import WeightGrid
from onnxopt.training.stored import stored
from onnxopt.traversal import all_graphs, all_nodes, bodies

__all__ = ["constants", "scales", "statistics", "weights"]

#: Inputs that hold weights, by operator.
_WEIGHTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Einsum": (0, 1, 2, 3),
    "GRU": (1, 2, 3),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
}
#: Operators through which a weight is followed, from their first input.
_FOLLOWED = frozenset(
    (
        "Cast",
        "DequantizeLinear",
        "Expand",
        "Flatten",
        "Identity",
        "Neg",
        "QuantizeLinear",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    )
)
#: Operators of two inputs through which a weight is followed when the other is constant as well.
_RESCALED = frozenset(("Add", "Div", "Mul", "Sub"))
#: Beyond this, numbers that are added are masks.
_LARGEST_SHIFT = 1e4


def constants(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values that a model holds numbers for: initializers and outputs of Constant, bodies too."""
    for each in all_graphs(graph):
        yield from each.initializers.values()
    for node in all_nodes(graph):
        if node.op_type == "Constant" and is_standard(node) and stored(node.outputs[0]) is not None:
            yield node.outputs[0]


def statistics(graph: ir.Graph) -> Iterator[ir.Value]:
    """Running means and variances of BatchNormalization, where they follow batches."""
    for node in all_nodes(graph):
        if follows_batches(node):
            yield from (value for value in node.inputs[3:5] if value is not None)


def scales(graph: ir.Graph) -> Iterator[ir.Value]:
    """Steps of the grids that numbers are rounded to while the model runs."""
    for node in all_nodes(graph):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and is_standard(node):
            value = node.inputs[1]
            tensor = stored(value)
            if value is not None and tensor is not None and tensor.dtype == ir.DataType.FLOAT:
                yield value


def weights(graph: ir.Graph) -> list[ir.Value]:
    """The weights of a graph, in the order in which the model holds them.

    What is a mean or variance as well, such as a scale of ones, is none: it would change both.
    """
    roles = _Roles(graph)
    held = {
        value
        for node in all_nodes(graph)
        if node.op_type == "BatchNormalization" and is_standard(node)
        for value in node.inputs[3:5]
    }
    return [
        value
        for value in dict.fromkeys(constants(graph))
        if value not in held and roles.is_weight(value)
    ]


class _Roles:
    def __init__(self, graph: ir.Graph) -> None:
        self._moving = _depends_on_inputs(graph)
        self._layered = _after_layers(graph, self._moving)

    def is_weight(self, value: ir.Value) -> bool:
        tensor = stored(value)
        if tensor is None or tensor.size == 0:
            return False
        if tensor.dtype not in _FLOATS and WeightGrid.of(value) is None:
            return False
        return self._feeds_layer(value, tensor.numpy())

    def _feeds_layer(self, value: ir.Value, array: NDArray[Any]) -> bool:
        pending, seen = [value], {value}
        while pending:
            current = pending.pop()
            for node, index in current.uses():
                if not is_standard(node):
                    continue
                if self._is_role(node, index, array):
                    return True
                if self._passes(node, index, array.size):
                    following = [output for output in node.outputs if output not in seen]
                    seen.update(following)
                    pending.extend(following)
        return False

    def _passes(self, node: ir.Node, index: int, size: int) -> bool:
        """Whether a weight of so many numbers is still one after this.

        A single number that meets constants is a factor in their making, such as a rate of samples.
        """
        if node.op_type in _FOLLOWED:
            return index == 0
        if node.op_type in _RESCALED:
            other = node.inputs[1 - index]
            return size > 1 and other is not None and other not in self._moving
        return node.op_type == "Concat" and not any(
            value in self._moving for value in node.inputs if value is not None
        )

    def _is_role(self, node: ir.Node, index: int, array: NDArray[Any]) -> bool:
        if node.op_type in _WEIGHTS:
            return index in _WEIGHTS[node.op_type]
        if node.op_type == "Gather":
            table = index == 0 and array.ndim > 1 and self._moves_or_ends(node)
            return table and not self._only_turns(node.outputs[0])
        if node.op_type in ("Add", "Mul", "Sub") and len(node.inputs) == 2:
            other = node.inputs[1 - index]
            return other in self._layered and self._is_affine(node, index, other, array)
        if node.op_type == "Concat":
            joined = any(value in self._layered for value in node.inputs)
            return joined and bool(np.ptp(array.astype(np.float32)) > 0)
        return False

    def _moves_or_ends(self, node: ir.Node) -> bool:
        """Whether a table is looked up in, and not merely taken apart like a list of sizes."""
        indices = node.inputs[1]
        if indices in self._moving:
            return True
        tensor = stored(indices)
        return tensor is not None and tensor.size > 1

    def _only_turns(self, value: ir.Value) -> bool:
        """Whether rows of a table do nothing but multiply what layers made, as rotations do."""
        pending, seen, turns = [value], {value}, False
        while pending:
            current = pending.pop()
            if current.is_graph_output():
                return False
            for node, index in current.uses():
                if node.op_type == "Mul" and node.inputs[1 - index] in self._layered:
                    turns = True
                elif node.op_type in _FOLLOWED or node.op_type in ("Concat", "Cos", "Sin"):
                    following = [output for output in node.outputs if output not in seen]
                    seen.update(following)
                    pending.extend(following)
                else:
                    return False
        return turns

    def _is_affine(
        self, node: ir.Node, index: int, other: ir.Value | None, array: NDArray[Any]
    ) -> bool:
        """Whether a constant that meets what layers made is a scale, a bias, or a table."""
        if node.op_type == "Sub" and index == 0:
            return False
        wide = [size for size in array.shape if size > 1]
        if not wide:
            return array.ndim > 0 and node.op_type != "Mul" and _makes_one_channel(other)
        if len(wide) == 1:
            return True
        if node.op_type != "Add":
            return False
        numbers = array.astype(np.float32)
        if not np.isfinite(numbers).all() or np.abs(numbers).max() >= _LARGEST_SHIFT:
            return False
        return not _reaches_softmax(node.outputs[0])


_FLOATS = frozenset(
    (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
)


def _depends_on_inputs(graph: ir.Graph) -> set[ir.Value]:
    """Values that differ from run to run."""
    found = {value for value in graph.inputs if stored(value) is None}
    for node in all_nodes(graph):
        outer = not node.inputs and node.op_type != "Constant"  # random
        if outer or any(value in found for value in _read(node)):
            found.update(node.outputs)
    return found


def _read(node: ir.Node) -> Iterator[ir.Value | None]:
    """What a node reads, in its bodies, too."""
    yield from node.inputs
    for body in bodies(node):
        for inner in all_nodes(body):
            yield from inner.inputs


def _after_layers(graph: ir.Graph, moving: set[ir.Value]) -> set[ir.Value]:
    """Values that a layer with weights had a part in."""
    found: set[ir.Value] = set()
    for node in all_nodes(graph):
        is_layer = node.op_type in _WEIGHTS or node.op_type == "Gather"
        if is_layer and is_standard(node):
            is_layer = any(value in moving for value in node.inputs) and any(
                value is not None and value not in moving for value in node.inputs
            )
            table = node.inputs[0]
            if node.op_type == "Gather" and (table is None or table in moving):
                is_layer = False
        if is_layer or any(value in found for value in _read(node)):
            found.update(node.outputs)
    return found


def _makes_one_channel(value: ir.Value | None) -> bool:
    """Whether a layer makes one channel, so that its bias is one number."""
    node = None if value is None else value.producer()
    if node is None or node.op_type not in ("Conv", "ConvTranspose", "MatMul"):
        return False
    weight = stored(node.inputs[1])
    if weight is None or len(weight.shape) < 2:
        return False
    axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}[node.op_type]
    return bool(weight.shape[axis] == 1)


def _reaches_softmax(value: ir.Value) -> bool:
    """Whether Softmax reads a value, perhaps after elementwise operators and reshapes."""
    pending, seen = [value], {value}
    while pending:
        for node, _ in pending.pop().uses():
            if node.op_type in ("Softmax", "LogSoftmax"):
                return True
            moves = Trait.UNARY, Trait.BROADCAST, Trait.DATA_MOVEMENT
            if any(has_trait(node, trait) for trait in moves):
                following = [output for output in node.outputs if output not in seen]
                seen.update(following)
                pending.extend(following)
    return False
