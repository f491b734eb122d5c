"""Put a decoder in the place of an initializer, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import onnx_ir as ir

from onnxopt.analysis.values import constant
from onnxopt.rewriting import drop_unused_initializer
from onnxopt.traversal import all_graphs

from .builder import Decoder, array_key, part_number

__all__ = ["CodedTensors", "SharedConstants", "next_number"]

#: Larger constants are not looked at for being shared.
_SHARED_BYTES = 64


class SharedConstants:
    """Small initializers of the main graph that decoders have in common.

    Attributes:
        keys: What they hold.
    """

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._values: dict[Hashable, ir.Value] = {}
        for value in model.graph.initializers.values():
            tensor = constant(value)
            if (
                tensor is not None
                and tensor.dtype != ir.DataType.STRING
                and tensor.nbytes <= _SHARED_BYTES
                and tensor.dtype.bitwidth >= 8
            ):
                self._values.setdefault(array_key(tensor.numpy()), value)
        self.keys: set[Hashable] = set(self._values)

    def use(self, key: Hashable, value: ir.Value) -> None:
        """Let the readers of a constant read the one that the model has; add it if it has none."""
        known = self._values.get(key)
        if known is None:
            self._values[key] = value
            self.keys.add(key)
            self._graph.register_initializer(value)
        else:
            value.replace_all_uses_with(known)

    def drop_unused(self) -> None:
        """Remove what no decoder reads in the end."""
        for value in self._values.values():
            drop_unused_initializer(value)


@dataclasses.dataclass(eq=False)
class CodedTensors:
    """Initializers of a graph and the decoder that can stand for them; mostly it is one.

    Attributes:
        dense: The initializers.
        decoder: The decoder, with an output for each.
        alone: If they are several: each with a decoder for itself, to be put in instead.
    """

    dense: tuple[ir.Value, ...]
    decoder: Decoder
    alone: tuple[CodedTensors, ...] = ()

    def __post_init__(self) -> None:
        graph = self.dense[0].graph
        assert graph is not None
        self._graph = graph
        self._front: ir.Node = graph[0]
        self._inner_names = [output.name for output in self.decoder.outputs]
        self.names = tuple(value.name or "" for value in self.dense)

    @property
    def code(self) -> str:
        """Name of the code."""
        return self.decoder.code

    @property
    def made(self) -> frozenset[str]:
        """Names of everything that the decoder makes, once it is in the model."""
        return frozenset(each.name or "" for node in self.decoder.nodes for each in node.outputs)

    def insert(self, shared: SharedConstants) -> None:
        """Let the decoder make the tensors. It goes to the front of the graph."""
        for part in self.decoder.parts:
            self._graph.register_initializer(part)
        for key, value in self.decoder.shared.items():
            shared.use(key, value)
        self._graph.insert_before(self._front, self.decoder.nodes)
        for dense, output in zip(self.dense, self.decoder.outputs, strict=True):
            self._graph.initializers.pop(dense.name or "")
            output.name, output.type, output.shape = dense.name, dense.type, dense.shape
            dense.replace_all_uses_with(output)

    def remove(self) -> None:
        """Undo `insert`; it can be done again."""
        outputs = zip(self.dense, self.decoder.outputs, self._inner_names, strict=True)
        for dense, output, inner_name in outputs:
            output.replace_all_uses_with(dense)
            output.name = inner_name
        self._graph.remove(self.decoder.nodes)
        for dense in self.dense:
            self._graph.register_initializer(dense)
        for part in self.decoder.parts:
            self._graph.initializers.pop(part.name or "")

    def give_up(self) -> None:
        """Let the decoder, which is not in the model, read nothing any more."""
        for node in self.decoder.nodes:
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)


def next_number(model: ir.Model) -> int:
    """The first number with which `DecoderBuilder` makes names that the model does not have."""
    numbers = [
        part_number(value.name)
        for graph in all_graphs(model.graph)
        for value in (
            *graph.inputs,
            *graph.initializers.values(),
            *(output for node in graph for output in node.outputs),
        )
    ]
    return max(numbers, default=-1) + 1
