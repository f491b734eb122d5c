"""Which ranks a value may have, and which ones the model can go on with.

Exporters that cannot tell the rank of a value put Squeeze or Unsqueeze into the branch of an If.
What reads the result often takes one rank only: an LSTM takes 3 dimensions and fails for any other
number. So in a run that does not fail the value had that rank, and the branch that would have given
another one was not taken.

That a node fails for another rank is what ONNX Runtime does, not what the standard says: it takes a
vector for a matrix in Gemm, for example, so Gemm is not here. The types that a file states for the
outputs of branches are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxopt.analysis.attributes import axes, ints_attribute
from onnxopt.analysis.symbolic import SymbolicFacts
from onnxopt.op_traits import Trait, has_trait, is_standard
from onnxopt.rewriting import Refuse
from onnxopt.traversal import bodies, graphs_of

__all__ = ["Ranks"]

#: How many nodes in a row are followed, upstream or downstream.
_MOST_STEPS = 32
#: How many nodes are looked at in search of an output of the model that a node is needed for.
_MOST_SEARCHED = 20_000
#: Ranks of the inputs, by index, that ONNX Runtime insists on.
_INSISTS: Mapping[str, Mapping[int, int]] = {
    "LSTM": {0: 3, 5: 3, 6: 3},
    "GRU": {0: 3, 5: 3},
    "RNN": {0: 3, 5: 3},
}
_POOLS = ("MaxPool", "AveragePool")
_CONVOLUTIONS = ("Conv", "ConvTranspose")

#: Ranks that are possible; None when nothing is known.
_Ranks = frozenset[int] | None


class Ranks:
    """Answers about one model, in which bodies may be moved to where their nodes stand.

    Args:
        model: The model.
        facts: What else is known of it.
    """

    def __init__(self, model: ir.Model, facts: SymbolicFacts) -> None:
        self._facts = facts
        self._main = model.graph
        self._owners: dict[ir.Graph, ir.Node] = {
            body: node for graph in graphs_of(model) for node in graph for body in bodies(node)
        }

    def possible(self, value: ir.Value | None, steps: int = _MOST_STEPS) -> _Ranks:
        """Ranks that a value can have."""
        if value is None:
            return None
        node = value.producer()
        if node is not None and is_standard(node) and steps:
            index = value.index() or 0
            if node.op_type == "If":
                return self._of_branches(node, index, steps)
            if (added := _added_dimensions(node)) is not None and index == 0:
                before = self.possible(node.inputs[0], steps - 1)
                if before is not None:
                    return frozenset(rank + added for rank in before)
        shape = self._facts.shape(value)
        return None if shape is None else frozenset((len(shape),))

    def required(self, value: ir.Value, steps: int = _MOST_STEPS) -> _Ranks:
        """Ranks of a value for which the model can go on; None when any may do.

        Only what always runs together with the node that makes the value counts, and of that, only
        what an output of the model depends on: a runtime need not run the rest.
        """
        required: _Ranks = None
        for node, index in value.uses():
            if node.graph is not value.graph or not is_standard(node):
                continue
            found = self._required_by(node, index, steps)
            if found is not None:
                required = found if required is None else required & found
        return required

    def _of_branches(self, node: ir.Node, index: int, steps: int) -> _Ranks:
        every: frozenset[int] = frozenset()
        for branch in bodies(node):
            if index >= len(branch.outputs):
                return None
            ranks = self.possible(branch.outputs[index], steps - 1)
            if ranks is None:
                return None
            every |= ranks
        return every

    def _required_by(self, node: ir.Node, index: int, steps: int) -> _Ranks:
        added = _added_dimensions(node)
        if added is not None and index == 0:
            after = self.required(node.outputs[0], steps - 1) if steps else None
            return None if after is None else frozenset(rank - added for rank in after)
        rank = self._insisted(node, index)
        return frozenset((rank,)) if rank is not None and self._is_needed(node) else None

    def _insisted(self, node: ir.Node, index: int) -> int | None:
        """The only rank that an input of a node can have without the runtime's failing."""
        if node.op_type in _INSISTS:
            return _INSISTS[node.op_type].get(index)
        try:
            if index == 0 and node.op_type == "Transpose":
                perm = ints_attribute(node, "perm")
                return None if perm is None else len(perm)
            if index == 0 and node.op_type in _POOLS:
                kernel = ints_attribute(node, "kernel_shape")
                return None if kernel is None else len(kernel) + 2
        except Refuse:  # a parameter of the function
            return None
        if index == 0 and node.op_type in _CONVOLUTIONS:
            weight = self._facts.shape(node.inputs[1])
            return None if weight is None else len(weight)
        return None

    def _is_needed(self, node: ir.Node) -> bool:
        """Whether an output of the model depends on a node.

        Who calls a function need not read all its outputs, so in a function the answer is no.
        """
        stack, seen = [*node.outputs], set(node.outputs)
        while stack and len(seen) < _MOST_SEARCHED:
            value = stack.pop()
            following = [output for reader in value.consumers() for output in reader.outputs]
            if value.is_graph_output():
                assert value.graph is not None
                if value.graph is self._main:
                    return True
                owner = self._owners.get(value.graph)
                if owner is not None:
                    following.extend(_given_by(value, value.graph, owner))
            fresh = [each for each in following if each not in seen]
            seen.update(fresh)
            stack.extend(fresh)
        return False


def _added_dimensions(node: ir.Node) -> int | None:
    """How many dimensions more the first output has than the first input, where that is certain."""
    if has_trait(node, Trait.UNARY):
        return 0
    if node.op_type not in ("Squeeze", "Unsqueeze"):
        return None
    try:
        given = axes(node)
    except Refuse:
        return None
    if given is None:
        return None
    return len(given) if node.op_type == "Unsqueeze" else -len(given)


def _given_by(value: ir.Value, body: ir.Graph, owner: ir.Node) -> list[ir.Value]:
    """Outputs of a control-flow node that are an output of its body, for If and Loop."""
    if owner.op_type not in ("If", "Loop"):
        return []
    first = 1 if owner.op_type == "Loop" else 0  # a Loop's body says first whether to go on
    places = [place - first for place, output in enumerate(body.outputs) if output is value]
    return [owner.outputs[place] for place in places if 0 <= place < len(owner.outputs)]
