"""Turn ``Constant`` nodes into initializers of the graph they stand in.

A ``Constant`` node and an initializer hold the same tensor; the initializer takes fewer bytes, can
be kept in external data, and is what tools look for. All forms are lifted (``value``,
``value_int``, ``value_ints``, ``value_float``, ``value_floats``, ``value_string``,
``value_strings``; sparse ones are dense once a model is loaded), in the main graph and in bodies of
control flow.

Exact: the numbers are the same bits. Never larger: integers that an attribute holds in few bytes
each are kept packed the same way.

Left alone: constants in local functions, which cannot have initializers; a constant that is a graph
output itself, since a graph makes its outputs by nodes (many tools expect that, though the
specification allows an initializer there).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.op_traits import is_standard
from onnxopt.pass_contract import Outcome, Pass, Refusal
from onnxopt.rewriting import Context, drop_node
from onnxopt.traversal import all_nodes

from .shared.held_constants import hold_as_constant

__all__ = ["LiftConstants"]


class LiftConstants(Pass):
    """Turn Constant nodes into initializers."""

    name = "lift-constants"

    def run(self, model: ir.Model) -> Outcome:
        """Lift all constants of the main graph and the bodies in it."""
        outcome = Outcome(model, False)
        context = Context(model)
        for node in list(all_nodes(model.graph)):
            if node.op_type != "Constant" or not is_standard(node):
                continue
            if self.max_rewrites is not None and outcome.rewritten.total() >= self.max_rewrites:
                break
            outcome.matched[self.name] += 1
            reason = _obstacle(node)
            if reason is not None:
                outcome.refusals.append(Refusal(self.name, reason, node.name or node.op_type))
                continue
            (attribute,) = node.attributes.values()
            hold_as_constant(node.outputs[0], _tensor(attribute), context)
            drop_node(node)
            outcome.rewritten[self.name] += 1
        outcome.modified = bool(outcome.rewritten)
        return outcome


def _obstacle(node: ir.Node) -> str | None:
    if node.outputs[0].is_graph_output():
        return "it is a graph output, which a node must make"
    attributes = list(node.attributes.values())
    if len(attributes) != 1 or attributes[0].is_ref():
        return "it does not hold exactly one attribute"
    if attributes[0].name not in _FORMS:
        return "it holds its value in an unknown attribute"
    return None


_FORMS = frozenset(
    (
        *("value", "value_int", "value_ints", "value_float", "value_floats"),
        *("value_string", "value_strings"),
    )
)


def _tensor(attribute: ir.Attr) -> ir.TensorProtocol:
    """The tensor that an attribute of Constant stands for (ONNX specification, Constant-13)."""
    match attribute.name:
        case "value":
            return attribute.as_tensor()
        case "value_int":
            return _packed_integers([attribute.as_int()], ())
        case "value_ints":
            return _packed_integers(attribute.as_ints(), (len(attribute.as_ints()),))
        case "value_float":
            return ir.Tensor(np.array(attribute.as_float(), dtype=np.float32))
        case "value_floats":
            return ir.Tensor(np.array(attribute.as_floats(), dtype=np.float32))
        case "value_string":
            return ir.StringTensor([attribute.as_string().encode()], shape=ir.Shape(()))
        case _:
            strings = [text.encode() for text in attribute.as_strings()]
            return ir.StringTensor(strings, shape=ir.Shape((len(strings),)))


def _packed_integers(numbers: Sequence[int], shape: Sequence[int]) -> ir.TensorProtocol:
    """An int64 tensor that is written as packed varints: one byte for a small number, not eight."""
    proto = onnx.TensorProto(data_type=onnx.TensorProto.INT64, dims=shape, int64_data=numbers)
    return ir.serde.deserialize_tensor(proto)
