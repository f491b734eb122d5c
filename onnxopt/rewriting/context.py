"""What a rule may ask of the model around a node, and how it says no."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from onnxopt.op_traits import is_standard
from onnxopt.traversal import all_graphs, root_graphs

__all__ = ["Context", "Refuse"]


class Refuse(Exception):  # noqa: N818 - it is an answer, not an error
    """Raised inside a rule: the pattern is there but must be left alone, for this reason."""


class Context:
    """What a rule may ask of the model around a node."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._names: set[str] | None = None
        self._last_number: dict[str, int] = {}
        #: By graph that is not the main one: its opset imports, and whether a function holds it.
        self._places: dict[ir.Graph, tuple[Mapping[str, int], bool]] | None = None

    def opset(self, node: ir.Node) -> int:
        """Version of the node's domain where the node stands; 0 when it is not imported."""
        imports, _ = self._place(node.graph)
        domain = "" if is_standard(node) else node.domain
        return imports.get(domain, imports.get("ai.onnx", 0) if domain == "" else 0)

    def in_function(self, node: ir.Node) -> bool:
        """Whether the node stands in the body of a local function."""
        return self._place(node.graph)[1]

    def unique_name(self, hint: str) -> str:
        """A name that no value and no node of the model has yet."""
        if self._names is None:
            self._names = set(_used_names(self.model))
        name, number = hint, self._last_number.get(hint, 0)
        while name in self._names:
            number += 1
            name = f"{hint}_{number}"
        self._last_number[hint] = number
        self._names.add(name)
        return name

    def _place(self, graph: ir.Graph | None) -> tuple[Mapping[str, int], bool]:
        if graph is None or graph is self.model.graph:
            return self.model.opset_imports, False
        if self._places is None or graph not in self._places:
            main = dict.fromkeys(all_graphs(self.model.graph), (self.model.opset_imports, False))
            self._places = dict(main)
            for function in self.model.functions.values():
                for inner in all_graphs(function.graph):
                    self._places[inner] = (function.opset_imports, True)
        return self._places[graph]


def _used_names(model: ir.Model) -> Iterator[str]:
    for root in root_graphs(model):
        for graph in all_graphs(root):
            for value in (*graph.inputs, *graph.initializers.values()):
                yield value.name or ""
            for node in graph:
                yield node.name or ""
                for value in node.outputs:
                    yield value.name or ""
