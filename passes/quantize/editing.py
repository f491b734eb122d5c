"""Putting nodes into a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.model import proven_shape
from onnxopt.rewriting import Context
from onnxopt.short_names import short_name

__all__ = ["Editor", "called_after"]


def called_after(source: ir.Value | str, what: str) -> str:
    """A name for something that belongs to a value or node, short if that has a long one."""
    name = source if isinstance(source, str) else source.name or ""
    return f"{short_name(name)}_{what}"


class Editor:
    """Adds nodes and constants to the main graph of a model.

    Args:
        model: The model, which is changed.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model, self.graph = model, model.graph
        self._context = Context(model)
        self._constants: dict[Any, ir.Value] = {}

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
        *,
        name: str,
        before: ir.Node | None = None,
        after: ir.Node | None = None,
        dtype: ir.DataType | None = None,
        like: ir.Value | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Insert a node with one output before or behind another one, and return that.

        Args:
            op_type: Operator.
            inputs: Its inputs.
            attributes: Python values by name.
            name: What the node and its outputs are called, with a suffix where that is taken.
            before: Insert before this node.
            after: Insert behind this node.
            dtype: Element type of the output.
            like: A value that has the shape of the output.
            domain: Of the operator, which the model then imports; empty for the standard one.
        """
        node = ir.node(op_type, inputs, attributes or {}, domain=domain)
        if domain:
            self.model.opset_imports.setdefault(domain, 1)
        self._name(node, name)
        (output,) = node.outputs
        if dtype is not None:
            output.type = ir.TensorType(dtype)
        shape = None if like is None else proven_shape(like)
        if shape is not None:
            output.shape = shape.copy()
        self._insert(node, before, after)
        return output

    def nodes(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        dtypes: Sequence[ir.DataType],
        *,
        name: str,
        before: ir.Node,
    ) -> Sequence[ir.Value]:
        """Insert a node with an output of each of these element types; see `node`."""
        node = ir.node(op_type, inputs, num_outputs=len(dtypes))
        self._name(node, name)
        for output, dtype in zip(node.outputs, dtypes, strict=True):
            output.type = ir.TensorType(dtype)
        self._insert(node, before, None)
        return node.outputs

    def _name(self, node: ir.Node, name: str) -> None:
        node.name = self._context.unique_name(name)
        for output in node.outputs:
            output.name = self._context.unique_name(name)

    def _insert(self, node: ir.Node, before: ir.Node | None, after: ir.Node | None) -> None:
        if before is not None:
            self.graph.insert_before(before, node)
        else:
            assert after is not None
            self.graph.insert_after(after, node)

    def constant(self, array: np.ndarray[Any, Any], name: str) -> ir.Value:
        """An initializer; one that is there already where an equal one was asked for."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape))
            value = ir.Value(name=self._context.unique_name(name), const_value=tensor)
            tensor.name = value.name
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Let a new value be read in place of an old one, under its name."""
        name = old.name
        old.name = self._context.unique_name(called_after(old, "float"))
        old.shape = proven_shape(old)  # what is stated of an output is the new value's business
        new.name = name
        if old.is_graph_output():
            new.type = old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)

    def take_over_name(self, old: ir.Node, new: ir.Value) -> None:
        """Let the node that gives a new value have the name of an old node, which is to go."""
        node = new.producer()
        assert node is not None
        name = old.name or old.outputs[0].name or ""
        old.name = self._context.unique_name(called_after(name, "float"))
        node.name = name

    def remove_unread(self, nodes: Sequence[ir.Node]) -> None:
        """Remove nodes whose outputs nobody reads, and initializers that only they read."""
        for node in nodes:
            if node.graph is None or any(
                value.uses() or value.is_graph_output() for value in node.outputs
            ):
                continue
            inputs = [value for value in node.inputs if value is not None]
            self.graph.remove(node, safe=True)
            self.remove_unread([made for value in inputs if (made := value.producer()) is not None])

    def remove_unread_initializers(self) -> None:
        """Remove initializers that nothing reads any more."""
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del self.graph.initializers[name]
