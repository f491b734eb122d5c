"""The weights that a model multiplies by, each seen as matrices.

A layer computes dot products of rows of weights with what comes in. Whatever the operator and its
layout, its weights are brought to shape ``[groups, rows, columns]``: a row makes one output, and a
column meets one input. The columns of a convolution are in the order kernel position, input
channel, so that neighbouring columns are neighbouring channels, as N:M patterns want them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Refuse
from onnxopt.traversal import all_graphs

from .grids import Grid, grid_of

__all__ = ["OPERATORS", "Layer", "Layout", "find_layers"]

Array = np.ndarray[Any, Any]

_FLOATS = frozenset(
    [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE]
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a weight lies in memory.

    Attributes:
        split: Shape into which the weight's own is parted.
        order: Axes of that, so that groups come first, then rows, then columns.
        groups: Number of groups.
        columns: Columns of each.
        natural: For each column, its place in the operator's own order (input channel, then kernel
            position), as `onnxopt.calibration` numbers the inputs of a dot product.
    """

    split: tuple[int, ...]
    order: tuple[int, ...]
    groups: int
    columns: int
    natural: tuple[int, int] = (1, 1)

    def matrix(self, weight: Array) -> Array:
        """A weight as ``[groups, rows, columns]``."""
        return (
            weight.reshape(self.split).transpose(self.order).reshape(self.groups, -1, self.columns)
        )

    def weight(self, matrix: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `matrix`."""
        parted = matrix.reshape([self.split[axis] for axis in self.order])
        return np.ascontiguousarray(parted.transpose(np.argsort(self.order)).reshape(shape))

    def columns_in_natural_order(self) -> Array:
        """For each column, its index among inputs ordered by channel, then kernel position."""
        channels, positions = self.natural
        return np.arange(channels * positions).reshape(channels, positions).T.reshape(-1)


@dataclasses.dataclass(eq=False)
class Layer:
    """A weight and the nodes that multiply by it.

    Attributes:
        value: The initializer: floats, or stored integers of a quantized weight.
        readers: The nodes that multiply by it.
        index: Which input of theirs it is.
        layout: How it lies in memory.
        grid: The integer grid of a quantized weight.
    """

    value: ir.Value
    readers: tuple[ir.Node, ...]
    index: int
    layout: Layout
    grid: Grid | None

    @property
    def name(self) -> str:
        """Name of the initializer."""
        return self.value.name or ""

    @property
    def operator(self) -> str:
        """What multiplies by it."""
        return self.readers[0].op_type

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the model."""
        return tuple(int(size) for size in self._tensor.shape.numpy())

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def _tensor(self) -> ir.TensorProtocol:
        tensor = self.value.const_value
        assert tensor is not None
        return tensor

    def matrix(self) -> Array:
        """The weights as ``[groups, rows, columns]``, as float64; a copy."""
        stored = np.asarray(self._tensor.numpy())
        real = stored.astype(np.float64) if self.grid is None else self.grid.real(stored)
        return np.array(self.layout.matrix(real))

    def rounding(self) -> Callable[[Array, int], Array] | None:
        """Rounds columns of `matrix` to the grid of a quantized weight; None for floats."""
        grid = self.grid
        if grid is None:
            return None
        scale = self.layout.matrix(np.broadcast_to(grid.scale, self.shape))
        zero = self.layout.matrix(np.broadcast_to(grid.zero, self.shape))

        def nearest(values: Array, column: int) -> Array:
            own = dataclasses.replace(grid, scale=scale[..., column], zero=zero[..., column])
            return own.real(own.nearest(values))

        return nearest

    def tensor(self, matrix: Array) -> ir.TensorProtocol:
        """The initializer's tensor with these weights; a weight of 0 is stored as the zero."""
        real = self.layout.weight(matrix, self.shape)
        stored = real if self.grid is None else self.grid.nearest(real)
        dtype = self._tensor.dtype
        return ir.Tensor(stored.astype(dtype.numpy()), dtype=dtype, name=self.name)


def find_layers(
    model: ir.Model, operators: Collection[str], least: int
) -> tuple[list[Layer], list[tuple[ir.Value, str]]]:
    """The layers of the main graph and of the bodies in it.

    Args:
        model: The model.
        operators: Operators whose weights are wanted.
        least: Smaller weights are left alone.

    Returns:
        The layers, and the weights of such operators that are left alone, with the reason.
    """
    found: list[Layer] = []
    refused: list[tuple[ir.Value, str]] = []
    for graph in all_graphs(model.graph):
        for value in graph.initializers.values():
            if not any(
                node.op_type in operators and _role(node, index) for node, index in _reads(value)
            ):
                continue
            try:
                layer = _layer(value)
                if layer.size < least:
                    raise Refuse("it is small")
                found.append(layer)
            except Refuse as refusal:
                refused.append((value, str(refusal)))
    return found, refused


def _reads(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Who reads a weight, through DequantizeLinear if it is quantized."""
    for node, index in value.uses():
        if node.op_type == "DequantizeLinear" and is_standard(node) and index == 0:
            yield from node.outputs[0].uses()
        else:
            yield node, index


def _layer(value: ir.Value) -> Layer:
    if value.is_graph_input():
        raise Refuse("it can be fed by the caller")
    tensor = value.const_value
    if tensor is None:
        raise Refuse("its numbers are not there")
    dequantizers = [node for node, _ in value.uses() if node.op_type == "DequantizeLinear"]
    outputs = [value, *(node.outputs[0] for node in dequantizers)]
    if any(each.is_graph_output() for each in outputs):
        raise Refuse("it is a graph output")
    grid = None
    if dequantizers:
        if len(dequantizers) < len(value.uses()):
            raise Refuse("its stored numbers are read as they are")
        if len(dequantizers) > 1:
            raise Refuse("it is dequantized more than once")
        grid = grid_of(dequantizers[0])
    elif tensor.dtype not in _FLOATS:
        raise Refuse("its type is not a float")
    shape = tuple(int(size) for size in tensor.shape.numpy())
    ways: set[tuple[str, int, Layout]] = set()
    readers: list[ir.Node] = []
    for node, index in _reads(value):
        role = _role(node, index)
        if role is None:
            raise Refuse("something else reads it, too")
        ways.add((node.op_type, index, role(node, shape)))
        readers.append(node)
    if len(ways) > 1:
        raise Refuse("its readers see it in different ways")
    _, index, layout = ways.pop()
    return Layer(value, tuple(readers), index, layout, grid)


# How the operators see their weights

_Role = Callable[[ir.Node, tuple[int, ...]], Layout]


def _role(node: ir.Node, index: int) -> _Role | None:
    return _ROLES.get((node.op_type, index)) if is_standard(node) else None


def _conv(node: ir.Node, shape: tuple[int, ...]) -> Layout:
    groups, (outputs, channels), kernel = _group(node, shape[0]), shape[:2], math.prod(shape[2:])
    split = (groups, outputs // groups, channels, kernel)
    return Layout(split, (0, 1, 3, 2), groups, channels * kernel, (channels, kernel))


def _conv_transpose(node: ir.Node, shape: tuple[int, ...]) -> Layout:
    groups, (channels, outputs), kernel = _group(node, shape[0]), shape[:2], math.prod(shape[2:])
    split = (groups, channels // groups, outputs * kernel)
    return Layout(split, (0, 2, 1), groups, channels // groups, (channels // groups, 1))


def _group(node: ir.Node, channels: int) -> int:
    groups = int_attribute(node, "group", 1)
    if groups < 1 or channels % groups:
        raise Refuse("its channels do not fit its groups")
    return groups


def _gemm(node: ir.Node, shape: tuple[int, ...]) -> Layout:
    if len(shape) != 2:
        raise Refuse("it is not a matrix")
    transposed = bool(int_attribute(node, "transB", 0))
    columns = shape[1] if transposed else shape[0]
    return Layout(shape, (0, 1) if transposed else (1, 0), 1, columns, (columns, 1))


def _matmul_right(node: ir.Node, shape: tuple[int, ...]) -> Layout:
    if len(shape) < 2:
        raise Refuse("it is a vector")
    *batch, columns, _ = shape
    groups = math.prod(batch)
    return Layout((groups, *shape[-2:]), (0, 2, 1), groups, columns, (columns, 1))


def _rows(node: ir.Node, shape: tuple[int, ...]) -> Layout:
    """Rows as they lie: the left side of MatMul, recurrent weights, tables of embeddings."""
    if len(shape) < 2:
        raise Refuse("it is a vector")
    groups = math.prod(shape[:-2])
    return Layout((groups, *shape[-2:]), (0, 1, 2), groups, shape[-1], (shape[-1], 1))


_ROLES: dict[tuple[str, int], _Role] = {
    ("Conv", 1): _conv,
    ("ConvTranspose", 1): _conv_transpose,
    ("Gemm", 1): _gemm,
    ("MatMul", 1): _matmul_right,
    ("MatMul", 0): _rows,
    **{(each, index): _rows for each in ("LSTM", "GRU", "RNN") for index in (1, 2)},
    ("Gather", 0): _rows,
}

#: All operators whose weights can be made sparse.
OPERATORS = tuple(dict.fromkeys(operator for operator, _ in _ROLES))
