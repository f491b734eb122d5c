"""The changes that a rule may make to a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.model import prove_shape, proven_shape
from onnxopt.rewriting.context import Context, Refuse

__all__ = ["Rewriter", "can_replace"]


class Rewriter:
    """The changes a rule may make; it keeps track of what they touch.

    New nodes go before the insertion point, which is the anchor to begin with. Nodes whose outputs
    nobody reads after a rewrite are removed, with what only they needed.
    """

    def __init__(self, context: Context, anchor: ir.Node) -> None:
        self.context = context
        self._point = anchor
        self._anchor = anchor
        self._fresh: dict[ir.Value, None] = {}
        self.changed: dict[ir.Node, None] = {}
        self.suspects: dict[ir.Node, None] = {}
        self.unread: dict[ir.Value, None] = {}

    def insert_before(self, node: ir.Node) -> None:
        """Put the following nodes before this one."""
        self._point = node

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        like: ir.Value | None = None,
        name: str | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Insert a node with one output and return that.

        Args:
            op_type: Operator.
            inputs: Its inputs; None for an optional one that is left out.
            attributes: Python values (int, float, str, sequences, tensors) by name.
            like: A value whose type and shape the output has.
            name: Hint for the output's name.
            domain: Operator domain.
        """
        return self.ops(op_type, inputs, attributes, 1, like=like, name=name, domain=domain)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        outputs: int = 1,
        *,
        like: ir.Value | None = None,
        name: str | None = None,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """Insert a node with several outputs; see `op`."""
        node = ir.node(op_type, inputs, attributes or {}, domain=domain, num_outputs=outputs)
        # Runtimes refuse two nodes of one name; where nodes have none, the new one has none either.
        anchor = self._anchor.name
        node.name = self.context.unique_name(anchor) if anchor else ""
        for output in node.outputs:
            hint = name or f"{self._anchor.outputs[0].name or op_type}_{op_type.lower()}"
            output.name = self.context.unique_name(hint)
            if like is not None:
                output.type, output.shape = like.type, _copy(proven_shape(like))
            self._fresh[output] = None
        assert self._point.graph is not None
        self._point.graph.insert_before(self._point, node)
        self.changed[node] = None
        return node.outputs

    def initializer(self, array: np.ndarray, name: str, like: ir.Value | None = None) -> ir.Value:
        """Add a constant where the anchor stands: an initializer, or a node inside a function.

        Args:
            array: The numbers, in their final dtype.
            name: Hint for the name.
            like: A value whose element type is used, where numpy's dtype does not say (int4).
        """
        dtype = like.dtype if like is not None and like.dtype is not None else None
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        tensor = ir.Tensor(array, dtype=dtype)
        return self.initializer_tensor(tensor, name)

    def initializer_tensor(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """Add a constant that is already a tensor; see `initializer`."""
        unique = self.context.unique_name(name)
        if self.context.in_function(self._anchor):
            value = self.op("Constant", [], {"value": tensor}, name=name)
        else:
            value = ir.Value(name=unique, const_value=tensor)
            assert self._anchor.graph is not None
        value.type = ir.TensorType(tensor.dtype)
        value.shape = ir.Shape(tensor.shape.numpy())
        if value.producer() is None:
            tensor.name = unique
            assert self._anchor.graph is not None
            self._anchor.graph.register_initializer(value)
        return value

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let everything that reads ``old`` read ``new``.

        A new value takes over the name, type and shape; so does any value that becomes a graph
        output in the old one's place.

        Raises:
            Refuse: When ``old`` is a graph output that ``new`` cannot stand for (`can_replace`).
        """
        if not can_replace(old, new):
            raise Refuse("a graph output must keep its name and its producer")
        for node, _ in old.uses():
            self.changed[node] = None
        was_output = old.is_graph_output()
        fresh = new in self._fresh
        certain = proven_shape(old)
        if certain is None and not fresh:  # a scalar's shape is known, and empty
            certain = proven_shape(new)
        if was_output or fresh:
            name = old.name
            if fresh or new.type is None:
                new.type = old.type if old.type is not None else new.type
            if fresh or new.shape is None:
                new.shape = _copy(old.shape) if old.shape is not None else new.shape
            old.name = self.context.unique_name(f"{name}_replaced")
            new.name = name
            if old.doc_string:
                new.doc_string = old.doc_string
            new.metadata_props.update(old.metadata_props)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if was_output:
            prove_shape(new, certain)
        self._suspect(old)
        if (producer := new.producer()) is not None:
            self.changed[producer] = None

    def replace_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Let one input of a node be another value."""
        old = node.inputs[index]
        node.replace_input_with(index, value)
        self.changed[node] = None
        if old is not None:
            self._suspect(old)

    def set_inputs(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> None:
        """Let a node have these inputs, whatever their number."""
        old = [value for value in node.inputs if value is not None]
        node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            node.replace_input_with(index, value)
        self.changed[node] = None
        for value in old:
            self._suspect(value)

    def set_attribute(self, node: ir.Node, name: str, value: Any) -> None:
        """Set an attribute of a node, or remove it with None."""
        if value is None:
            node.attributes.pop(name, None)
        else:
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
        self.changed[node] = None

    def _suspect(self, value: ir.Value) -> None:
        """Remember that a value lost a reader: its producer may be dead, others may match now."""
        producer = value.producer()
        if producer is not None:
            self.suspects[producer] = None
        else:
            self.unread[value] = None
        for node in value.consumers()[:2]:
            self.changed[node] = None


def can_replace(old: ir.Value, new: ir.Value) -> bool:
    """Whether `Rewriter.replace` can let ``new`` stand for ``old``.

    Always, unless ``old`` is a graph output: then ``new`` must be made by a node of the same graph
    and not be an output already, since outputs keep their names.
    """
    if not old.is_graph_output():
        return True
    producer = new.producer()
    return (
        producer is not None
        and producer.graph is old.graph
        and not new.is_graph_output()
        and not new.is_graph_input()
    )


def _copy(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else shape.copy()
