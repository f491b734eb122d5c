"""Carry out a choice of layouts in the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.model import prove_shape, proven_shape
from onnxopt.rewriting import (
    Context,
    Rewriter,
    drop_node,
    drop_unused_initializer,
    is_dead,
)

from .operators import change_for
from .permutations import compose, inverse, permuted
from .regions import Layout, Region, Tensor

__all__ = ["switch"]


def switch(
    region: Region,
    chosen: Mapping[ir.Node, Layout],
    positions: Mapping[ir.Node, int],
    context: Context,
) -> None:
    """Let each movable node work in its chosen layout, with Transposes where layouts meet.

    A node that switches stays the node it is; its outputs then hold permuted numbers, and keep
    their names unless the graph gives them out.

    Args:
        region: The region.
        chosen: The layout of each movable node.
        positions: The order of the nodes of the graph, as it was when the region was found.
        context: Of the model.
    """
    _Switch(region, chosen, positions, context).run()


class _Switch:
    def __init__(
        self,
        region: Region,
        chosen: Mapping[ir.Node, Layout],
        positions: Mapping[ir.Node, int],
        context: Context,
    ) -> None:
        self.region = region
        self.chosen = chosen
        self.positions = positions
        self.context = context
        self.switching = {node for node, layout in chosen.items() if layout != region.movable[node]}
        self.tensor_of = {value: tensor for tensor in region.tensors for value in tensor.copies}
        #: The values of each tensor by layout; the first is the one that its producer makes.
        self.made: dict[int, dict[Layout, ir.Value]] = {}
        self.constants: dict[tuple[ir.Value, tuple[int, ...], bytes], ir.Value] = {}

    def run(self) -> None:
        """Change the graph, from its first node to its last."""
        for value in self.tensor_of:
            value.shape = proven_shape(
                value
            )  # an output's name and stated shape will go to another
        readers: dict[ir.Node, list[tuple[int, ir.Value]]] = {node: [] for node in self.switching}
        for tensor in self.region.tensors:
            self.made[id(tensor)] = self._present(tensor)
            for node, index, value in tensor.readers:
                readers.setdefault(node, []).append((index, value))
        for node in sorted(readers, key=self.positions.__getitem__):
            if node in self.switching:
                self._change(node)
            for index, value in readers[node]:
                self._read(node, index, value)
            if node in self.switching:
                for output in self.region.carriers[node].outputs:
                    self._permute_output(node, node.outputs[output])
        self._drop_dead_copies()

    def _present(self, tensor: Tensor) -> dict[Layout, ir.Value]:
        """The origin, and copies that a Transpose makes from it: they stay, if it does."""
        producer = tensor.origin.producer()
        layouts = {tensor.copies[tensor.origin]: tensor.origin}
        if producer in self.switching and self.region.carries_output(producer, tensor.origin):
            return layouts
        for value, layout in tensor.copies.items():
            node = value.producer()
            if node is not None and node.inputs[0] is tensor.origin:
                layouts.setdefault(layout, value)
        return layouts

    def _change(self, node: ir.Node) -> None:
        """Adapt the attributes and constants of a node that switches."""
        perm = compose(self.region.movable[node], inverse(self.chosen[node]))
        opset = self.context.opset(node)
        change = change_for(node, perm, opset)
        for name, value in change.attributes.items():
            if value is None:
                node.attributes.pop(name, None)
            else:
                node.attributes[name] = ir.convenience.convert_attribute(name, value)
        for index, array in change.constants.items():
            old = node.inputs[index] if index < len(node.inputs) else None
            new = self._constant(array, old, node)
            if index >= len(node.inputs):
                node.resize_inputs(index + 1)
            node.replace_input_with(index, new)
            if old is not None:
                _drop_unused_constant(old)
        if change.order is not None:
            self._reorder(node, np.array(change.order, np.int64))

    def _reorder(self, node: ir.Node, order: np.ndarray[Any, Any]) -> None:
        """Let what reads the output of a Shape read some of its elements."""
        assert node.graph is not None
        output = node.outputs[0]
        readers = list(output.uses())
        indices = Rewriter(self.context, node).initializer(order, f"{output.name}_order")
        gather = ir.node("Gather", [output, indices], {"axis": 0})
        value = gather.outputs[0]
        value.name = gather.name = self.context.unique_name(f"{output.name}_ordered")
        value.type, value.shape = output.type, proven_shape(output)
        output.shape = None  # attributes that limited it are gone
        node.graph.insert_after(node, gather)
        for reader, index in readers:
            reader.replace_input_with(index, value)
        if output.is_graph_output():
            self._take_place(output, value)

    def _constant(
        self, array: np.ndarray[Any, Any], old: ir.Value | None, node: ir.Node
    ) -> ir.Value:
        """A constant in place of another; nodes that shared the old one share the new one."""
        rewriter = Rewriter(self.context, node)
        if old is None:
            return rewriter.initializer(array, f"{node.outputs[0].name}_axes")
        key = (old, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = rewriter.initializer(array, f"{old.name}_permuted", like=old)
        return self.constants[key]

    def _read(self, node: ir.Node, index: int, value: ir.Value) -> None:
        """Let one input of a node have the layout that the node wants there."""
        tensor = self.tensor_of[value]
        carried = self.region.carries_input(node, index)
        layout = self.chosen[node] if carried else tensor.copies[value]
        wanted = self._get(tensor, layout, node)
        if node.inputs[index] is not wanted:
            node.replace_input_with(index, wanted)

    def _get(self, tensor: Tensor, layout: Layout, reader: ir.Node) -> ir.Value:
        """The tensor in a layout; if need be a Transpose is put in front of the reader."""
        made = self.made[id(tensor)]
        present = made.get(layout)
        if present is not None:
            producer = present.producer()
            if producer is None or self.positions.get(producer, -1) < self.positions[reader]:
                return present
        value, node = self._transpose(tensor, layout)
        assert reader.graph is not None
        reader.graph.insert_before(reader, node)
        made[layout] = value
        if present is not None and present in tensor.outputs:
            self._take_place(present, value)
        return value

    def _transpose(self, tensor: Tensor, layout: Layout) -> tuple[ir.Value, ir.Node]:
        """A node, not yet part of the graph, that makes a layout from the one that is there."""
        stored, source = next(iter(self.made[id(tensor)].items()))
        perm = compose(stored, inverse(layout))
        node = ir.node("Transpose", [source], {"perm": perm})
        value = node.outputs[0]
        value.name = self.context.unique_name(f"{source.name}_transposed")
        node.name = value.name
        value.type = source.type
        if source.shape is not None:
            value.shape = ir.Shape(permuted(list(source.shape), perm))
        return value, node

    def _permute_output(self, node: ir.Node, output: ir.Value) -> None:
        """Say of an output that it is permuted now, and make the copies that must exist."""
        tensor = self.tensor_of[output]
        old, new = tensor.copies[output], self.chosen[node]
        if output.shape is not None:
            output.shape = ir.Shape(permuted(list(output.shape), compose(old, inverse(new))))
            prove_shape(output, output.shape)
        made = {new: output}
        self.made[id(tensor)] = made
        # The output itself first: where another copy takes its value over, its name must be free.
        for value in sorted(tensor.outputs, key=lambda value: value is not output):
            layout = tensor.copies[value]
            if layout not in made:
                made[layout], transpose = self._transpose(tensor, layout)
                assert node.graph is not None
                node.graph.insert_after(node, transpose)
            self._take_place(value, made[layout])

    def _take_place(self, old: ir.Value, new: ir.Value) -> None:
        """Give the graph, and the bodies of its nodes, another value for one they read."""
        graph = old.graph
        assert graph is not None
        if old.is_graph_output():
            name = old.name
            old.name = self.context.unique_name(f"{name}_permuted")
            new.name, new.doc_string = name, old.doc_string
            new.metadata_props.update(old.metadata_props)
            for index, output in enumerate(graph.outputs):
                if output is old:
                    graph.outputs[index] = new
            prove_shape(new, new.shape)
        for node, index in old.uses():
            if node.graph is not graph:
                node.replace_input_with(index, new)

    def _drop_dead_copies(self) -> None:
        producers = {
            node
            for tensor in self.region.tensors
            for value in tensor.copies
            if value is not tensor.origin and (node := value.producer()) is not None
        }
        for node in sorted(producers, key=self.positions.__getitem__, reverse=True):
            if is_dead(node):
                drop_node(node)


def _drop_unused_constant(value: ir.Value) -> None:
    node = value.producer()
    if node is None:
        drop_unused_initializer(value)
    elif is_dead(node):
        drop_node(node)
