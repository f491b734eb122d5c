"""Give short names to everything inside a model.

Exporters name nodes and values by the path of a module, three times for each node. In a small
network, or a large one with few weights left, that text is most of what does not get smaller.

Names of inputs and outputs, metadata and local functions stay; the numbers are the same. What is
lost are the names by which weights and nodes are known: to write trained weights back, to compare
two models layer by layer, or to read a profile. So it is no part of any named pipeline.
"""

from __future__ import annotations

import dataclasses
import itertools
import string
from collections.abc import Collection, Iterator
from typing import ClassVar

import onnx_ir as ir

from onnxopt.pass_contract import Kind, Outcome, Pass, Refusal
from onnxopt.traversal import all_graphs

from .compact_weights.builder import part_number

__all__ = ["ShortenNames"]

#: Where `onnx_ir` keeps the quantization annotation of a value.
_ANNOTATED = "quant_parameter_tensor_names"


@dataclasses.dataclass(frozen=True)
class _Options:
    """Options of `ShortenNames`.

    Attributes:
        initializers: Whether weights get short names, too.
    """

    initializers: bool = True


class ShortenNames(Pass):
    """Give short names to everything inside a model, so that its file gets smaller.

    Names of nodes are left out, those of values become a letter or two. Names of inputs and
    outputs, metadata and local functions stay. What is lost are the names by which weights and
    nodes are known, so no named pipeline does it.

    Left alone: models with quantization annotations, which tell values by name.
    """

    name = "shorten-names"
    kind = Kind.STORAGE
    Options: ClassVar[type] = _Options
    _rule = "name"

    def run(self, model: ir.Model) -> Outcome:
        """Rename in the main graph and in all bodies of control flow in it."""
        outcome = Outcome(model, False)
        graphs = list(all_graphs(model.graph))
        values = list(dict.fromkeys(each for graph in graphs for each in _values(graph)))
        if any(_ANNOTATED in value.meta for value in values):
            outcome.matched[self._rule] += 1
            reason = "quantization annotations tell values by name"
            outcome.refusals.append(Refusal(self._rule, reason))
            return outcome
        interface = {*model.graph.inputs, *model.graph.outputs}
        new_names = _new_names({value.name for value in values})
        name = next(new_names)
        for value in values:
            if self._is_enough(outcome):
                break
            old = value.name or ""
            if len(name) < len(old) and value not in interface and self._is_ours(value):
                _rename(value, name)
                name = next(new_names)
                outcome.rewritten[self._rule] += 1
        for node in (node for graph in graphs for node in graph):
            if node.name and not self._is_enough(outcome):
                node.name = ""
                outcome.rewritten[self._rule] += 1
        outcome.matched.update(outcome.rewritten)
        outcome.modified = bool(outcome.rewritten)
        return outcome

    def _is_enough(self, outcome: Outcome) -> bool:
        return self.max_rewrites is not None and outcome.rewritten.total() >= self.max_rewrites

    def _is_ours(self, value: ir.Value) -> bool:
        """Whether a value inside the model may be renamed."""
        if part_number(value.name) >= 0:
            return False  # decoders of compact weights are partly known by their names
        return self.options.initializers or not value.is_initializer()


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Everything that has a name in a graph, without its bodies."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _rename(value: ir.Value, name: str) -> None:
    tensor = value.const_value
    if isinstance(tensor, ir.TensorProtoTensor):
        # It would rename the tensor in the message that the model was made of.
        value.const_value = ir.LazyTensor(lambda: tensor, tensor.dtype, tensor.shape, name=name)
    value.name = name


def _new_names(taken: Collection[str | None]) -> Iterator[str]:
    """Names that a model does not have, the shortest first."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_letters, repeat=length):
            if (name := "".join(letters)) not in taken:
                yield name
