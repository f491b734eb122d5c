"""Compute once what is computed twice.

Two nodes are equal when they have the same operator, the same inputs and equal attributes; the
later one goes, and what read it reads the earlier one. Operands of commutative operators may be in
another order, and an attribute that is not given equals its default. One sweep in the order of the
graph finds all of it, chains of equal nodes too, since inputs are merged before what reads them.

A node in a body of control flow also equals one of the graphs around it that stands before; never
the other way round, and never one of another body. Equal nodes that both make graph outputs stay
two, but the later one becomes an Identity where that is less work.

Exact: the numbers are the same, up to the order of summands.

Left alone: random operators and everything not known to give the same outputs each time (Dropout
that may train, operators of other domains, calls of functions), nodes that hold graphs, and
DequantizeLinear, of which the runtime wants one for each reader. ONNX Runtime merges equal nodes
itself before it fuses, so no fusion is lost that it would have found.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Hashable, Mapping

import onnx
import onnx_ir as ir

from onnxopt.analysis.scopes import Scopes
from onnxopt.op_traits import Trait, is_deterministic, traits_of
from onnxopt.pass_contract import Outcome, Pass, Refusal
from onnxopt.rewriting import Context, Refuse, Rewriter, can_replace, drop_node
from onnxopt.traversal import bodies

__all__ = ["EliminateCommonSubexpressions"]

#: Larger tensors in attributes are compared by a digest.
_MOST_BYTES_KEPT = 256
_COMMUTATIVE = frozenset(
    (
        *("Add", "Mul", "Sum", "Mean", "Max", "Min", "Equal"),
        *("And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor"),
    )
)
#: Not worth an Identity in their place: they take no more time than a copy.
_CHEAP_TRAITS = Trait.UNARY | Trait.BROADCAST | Trait.DATA_MOVEMENT
_CHEAP = ("Constant", "ConstantOfShape", "Shape", "Size")


class EliminateCommonSubexpressions(Pass):
    """Compute once what is computed twice."""

    name = "eliminate-common-subexpressions"

    def run(self, model: ir.Model) -> Outcome:
        """Merge equal nodes in all graphs and functions."""
        outcome = Outcome(model, False)
        context = Context(model)
        for root in (model.graph, *(function.graph for function in model.functions.values())):
            _Sweep(root, context, outcome, self.max_rewrites).run()
        outcome.modified = bool(outcome.rewritten)
        return outcome


class _Sweep:
    """One pass over a graph and the bodies inside."""

    rule = "merge-equal-nodes"

    def __init__(
        self, root: ir.Graph, context: Context, outcome: Outcome, most: int | None
    ) -> None:
        self.root = root
        self.context = context
        self.outcome = outcome
        self.most = most

    def run(self) -> None:
        self._visit(self.root, [])

    @functools.cached_property
    def scopes(self) -> Scopes:
        return Scopes(self.root)

    def _visit(self, graph: ir.Graph, outer: list[dict[Hashable, ir.Node]]) -> None:
        here: dict[Hashable, ir.Node] = {}
        tables = [here, *outer]
        for node in graph:
            if held := bodies(node):
                for body in held:
                    self._visit(body, tables)
                continue
            key = self._key(node)
            if key is None:
                continue
            twin = here.get(key) or next(filter(None, (table.get(key) for table in outer)), None)
            if twin is None:
                here[key] = node
                continue
            self.outcome.matched[self.rule] += 1
            if self.most is not None and self.outcome.rewritten[self.rule] >= self.most:
                return
            try:
                self._merge(node, twin)
            except Refuse as refuse:
                label = node.name or node.op_type
                self.outcome.refusals.append(Refusal(self.rule, str(refuse), label))
                here[key] = node  # what comes later may still merge with this one
            else:
                self.outcome.rewritten[self.rule] += 1

    def _key(self, node: ir.Node) -> Hashable:
        """What equal nodes have in common; None for a node that is never merged."""
        if not is_deterministic(node):
            return None
        inputs = list(node.inputs)
        while inputs and inputs[-1] is None:
            inputs.pop()
        if node.op_type in _COMMUTATIVE:
            inputs.sort(key=id)
        outputs = None if _has_optional_outputs(node.op_type) else len(node.outputs)
        attributes: dict[str, Hashable] = {}
        if node.attributes:
            defaults = _defaults(node.op_type, self.context.opset(node))
            for name, attribute in node.attributes.items():
                key = _attribute_key(attribute)
                if key is None:
                    return None
                if key != defaults.get(name):
                    attributes[name] = key
        return node.op_type, tuple(inputs), frozenset(attributes.items()), outputs

    def _merge(self, node: ir.Node, twin: ir.Node) -> None:
        if node.op_type == "DequantizeLinear":
            raise Refuse("the runtime wants a DequantizeLinear for each reader")
        needed = [value for value in node.outputs if value.uses() or value.is_graph_output()]
        pairs = []
        for value in needed:
            index = value.index()
            assert index is not None
            if index >= len(twin.outputs) or not twin.outputs[index].name:
                raise Refuse("the earlier node has fewer outputs")
            pairs.append((value, twin.outputs[index]))
        for old, new in pairs:
            self._check(node, old, new)
        rewriter = Rewriter(self.context, node)
        for old, new in pairs:
            if not can_replace(old, new):
                new = rewriter.op("Identity", [new], like=old)
            renames = old.is_graph_output()
            rewriter.replace(old, new)
            if renames and node.graph is not None:
                self.scopes.renamed(node.graph)
        drop_node(node)

    def _check(self, node: ir.Node, old: ir.Value, new: ir.Value) -> None:
        elsewhere = new.graph is not node.graph or any(
            reader.graph is not node.graph for reader in old.consumers()
        )
        if elsewhere and not self.scopes.can_stand_for(new, old):
            raise Refuse("a body holds another value of that name")
        if not can_replace(old, new) and (
            traits_of(node) & _CHEAP_TRAITS or node.op_type in _CHEAP
        ):
            raise Refuse("a graph output must keep its name and its producer")


def _attribute_key(attribute: ir.Attr) -> Hashable:
    """A key that is equal for equal attributes, or None where that is not to be told."""
    if attribute.is_ref():
        return "parameter", attribute.ref_attr_name
    match attribute.type:
        case ir.AttributeType.INT | ir.AttributeType.STRING:
            return attribute.type, attribute.value
        case ir.AttributeType.INTS | ir.AttributeType.STRINGS:
            return attribute.type, tuple(attribute.value)
        case ir.AttributeType.FLOAT:
            return attribute.type, struct.pack("<d", attribute.value)  # tells -0 from 0
        case ir.AttributeType.FLOATS:
            return attribute.type, struct.pack(f"<{len(attribute.value)}d", *attribute.value)
        case ir.AttributeType.TENSOR:
            return attribute.type, _tensor_key(attribute.as_tensor())
        case ir.AttributeType.TENSORS:
            return attribute.type, tuple(_tensor_key(each) for each in attribute.as_tensors())
    return None


def _tensor_key(tensor: ir.TensorProtocol) -> Hashable:
    shape = tuple(tensor.shape.numpy())
    if isinstance(tensor, ir.StringTensor):
        return tensor.dtype, shape, tuple(tensor.string_data())
    data = tensor.tobytes()
    if len(data) > _MOST_BYTES_KEPT:
        data = hashlib.blake2b(data).digest()
    return tensor.dtype, shape, data


@functools.cache
def _defaults(op_type: str, version: int) -> Mapping[str, Hashable]:
    """Keys of the attributes that have a default, by name."""
    try:
        schema = onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return {}
    return {
        name: _attribute_key(ir.serde.deserialize_attribute(attribute.default_value))
        for name, attribute in schema.attributes.items()
        if attribute.default_value.name
    }


@functools.cache
def _has_optional_outputs(op_type: str) -> bool:
    """Whether any revision of the operator has outputs that a node may leave out.

    Else the number of outputs may say what the node does, as it does of Split.
    """
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    return onnx.defs.has(op_type) and any(
        output.option == optional for output in onnx.defs.get_schema(op_type).outputs
    )
