"""Stored weights that may be narrowed, with all that reads them.

What counts is what the file stores: a constant that two products share, or a table of embeddings
that is also the last product's weights, gets smaller only when none of its readers needs it in
float. So the constant is the unit, not the product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute
from onnxopt.analysis.values import constant, constant_array
from onnxopt.layers import layer_name
from onnxopt.op_traits import is_standard
from onnxopt.regions import Product, products
from onnxopt.traversal import all_graphs

from .narrowing import Form
from .operators import has_operator

__all__ = ["Left", "Store", "Written", "stores"]

#: As DequantizeLinear, or as operators of ONNX Runtime.
Written = Literal["qdq", "nbits"]

_MOVES = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")


@dataclasses.dataclass(frozen=True)
class Store:
    """A constant, and the nodes that read it.

    Attributes:
        value: The constant, float32.
        products: Products whose weights it is; in the layout of their kernels they are all alike.
        gathers: Gathers of its rows.
    """

    value: ir.Value
    products: tuple[Product, ...]
    gathers: tuple[ir.Node, ...]

    @property
    def key(self) -> str:
        """What it is called; the same in a copy of the model."""
        return self.value.name or ""

    @property
    def readers(self) -> tuple[ir.Node, ...]:
        """The nodes that compute with it."""
        return (*(product.node for product in self.products), *self.gathers)

    @property
    def is_table(self) -> bool:
        """Whether rows of it are gathered."""
        return bool(self.gathers)

    def takes(self, form: Form, written: Written) -> bool:
        """Whether its readers can have a form: only some know a scale for each block of inputs.

        Args:
            form: The form.
            written: As what it is written.
        """
        if form is Form.INT8:
            return True
        if self.is_table:
            # Of rows with two numbers in a byte, the runtime takes an odd last one for two.
            whole = form is Form.UINT8 or self._row % 2 == 0
            return self.is_gathered_only and written == "nbits" and whole
        if written == "nbits":
            return all(has_operator(product) for product in self.products)
        return all(product.node.op_type in ("MatMul", "Gemm") for product in self.products)

    @property
    def is_gathered_only(self) -> bool:
        """Whether it is a table and nothing else."""
        return self.is_table and not self.products

    @property
    def _row(self) -> int:
        """Numbers in a row of a table."""
        tensor = constant(self.value)
        assert tensor is not None
        return int(tensor.shape.numpy()[1])

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        tensor = constant(self.value)
        assert tensor is not None
        return int(tensor.size)


@dataclasses.dataclass(frozen=True)
class Left:
    """A node that reads weights which stay as they are, and why."""

    node: ir.Node
    reason: str


def stores(model: ir.Model, least: int, kept: frozenset[str]) -> Iterator[Store | Left]:
    """All constants of the main graph that products or Gather read, and what is left alone.

    Args:
        model: The model; element types are known.
        least: Constants of fewer numbers are left alone.
        kept: Names of nodes that are to keep their weights.
    """
    found: dict[ir.Value, list[Product | ir.Node]] = {}
    for each in products(model.graph):
        if not isinstance(each, Product):
            yield Left(*each)
            continue
        root = _root(each.node.inputs[1])
        assert root is not None, "a product's weights are constant"
        found.setdefault(root, []).append(each)
    for node in model.graph:
        if node.op_type == "Gather" and is_standard(node) and constant(node.inputs[0]) is not None:
            assert node.inputs[0] is not None
            found.setdefault(node.inputs[0], []).append(node)
    inner = {
        value
        for graph in all_graphs(model.graph)
        for node in graph
        for value in node.inputs
        if graph is not model.graph
    }
    for value, readers in found.items():
        reason = _why_not(value, readers, least, kept)
        if reason is None and value in inner:
            reason = "a body of control flow reads its weights too"
        if reason is not None:
            for reader in readers:
                yield Left(reader.node if isinstance(reader, Product) else reader, reason)
            continue
        yield Store(
            value,
            tuple(reader for reader in readers if isinstance(reader, Product)),
            tuple(reader for reader in readers if not isinstance(reader, Product)),
        )


def _why_not(
    value: ir.Value, readers: list[Product | ir.Node], least: int, kept: frozenset[str]
) -> str | None:
    tensor = constant(value)
    assert tensor is not None
    if tensor.dtype != ir.DataType.FLOAT:
        return f"its weights are {tensor.dtype.name.lower()}, and only float32 is narrowed"
    if tensor.size < least:
        return "its weights are few"
    if value.is_graph_output() or _reads(value) != len(readers):
        return "its weights are read in other ways too"
    nodes = [reader.node if isinstance(reader, Product) else reader for reader in readers]
    if any(layer_name(node) in kept for node in nodes):
        return "it is to keep its weights"
    found = [reader for reader in readers if isinstance(reader, Product)]
    gathers = [reader for reader in readers if not isinstance(reader, Product)]
    if gathers:
        return _why_no_table(value, gathers, found)
    if any(
        (
            product.node.op_type != found[0].node.op_type
            and "Conv" in (product.node.op_type, found[0].node.op_type)
        )
        or product.weights.shape != found[0].weights.shape
        or not np.array_equal(product.weights, found[0].weights)
        for product in found[1:]
    ):
        return "its weights are read in two layouts"
    return None


def _why_no_table(value: ir.Value, gathers: list[ir.Node], found: list[Product]) -> str | None:
    table = constant_array(value)
    assert table is not None
    if table.ndim != 2 or any(int_attribute(node, "axis", 0) != 0 for node in gathers):
        return "what is gathered are no rows of a matrix"
    if not np.isfinite(table).all():
        return "its weights are not all finite"
    for product in found:
        if product.node.op_type == "Conv" or product.weights.shape != table.T.shape:
            return "its weights are read in two layouts"
        if not np.array_equal(product.weights, table.T):
            return "its weights are read in two layouts"
    return None


def _root(value: ir.Value | None) -> ir.Value | None:
    """The constant behind nodes that only move its numbers."""
    while value is not None and constant(value) is None:
        node = value.producer()
        if node is None or node.op_type not in _MOVES:
            return None
        value = node.inputs[0]
    return value


def _reads(value: ir.Value) -> int:
    """How often a constant is read, nodes that only move it being looked through."""
    count = 0
    for node, index in value.uses():
        if node.op_type in _MOVES and index == 0 and not node.outputs[0].is_graph_output():
            count += _reads(node.outputs[0])
        else:
            count += 1
    return count
