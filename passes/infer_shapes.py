"""Find out element types and shapes that the file does not state.

Runs ONNX's own inference, with propagation of shape data, on the model without its large weights,
and merges what it finds: a known number replaces a symbol or an unknown, a symbol replaces an
unknown, nothing known is ever given up. The facts serve the other passes; those that the file did
not state are not written to the output, which would grow by them.

Exact: nothing the model computes changes. Left alone: values whose inferred type or rank
contradicts the stated one, names that two bodies of control flow use for different values, the
bodies of functions, and everything when inference fails as a whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from onnxopt.model import light_proto
from onnxopt.pass_contract import Outcome, Pass, Refusal
from onnxopt.traversal import all_nodes

__all__ = ["InferShapes"]

logger = logging.getLogger(__name__)


class InferShapes(Pass):
    """Annotate values with the element types and shapes that ONNX's inference finds."""

    name = "infer-shapes"

    def run(self, model: ir.Model) -> Outcome:
        """Annotate in place; ``modified`` says whether anything new was found."""
        outcome = Outcome(model, False, annotates=True)
        open_values = [
            value
            for node in all_nodes(model.graph)  # a function's types depend on who calls it
            for value in node.outputs
            if not _is_settled(value)
        ]
        if not open_values:
            return outcome
        try:
            proto = onnx.shape_inference.infer_shapes(light_proto(model), data_prop=True)
        except Exception as error:  # the library has no error type of its own for all its checks
            logger.info("shape inference failed", exc_info=error)
            reason = f"inference failed: {str(error).strip().splitlines()[0]}"
            outcome.refusals.append(Refusal(self.name, reason))
            return outcome
        found = _infos(proto.graph)
        for value in open_values:
            info = found.get(value.name or "")
            if info is not None and _merge(value, info):
                outcome.rewritten[self.name] += 1
        outcome.modified = bool(outcome.rewritten)
        return outcome


def _is_settled(value: ir.Value) -> bool:
    """Whether inference could add nothing: the type is known and every dimension has a name."""
    return (
        value.type is not None
        and value.shape is not None
        and all(isinstance(dim, int) or dim.value is not None for dim in value.shape)
    )


def _infos(graph: onnx.GraphProto) -> dict[str, onnx.ValueInfoProto]:
    """What was found, by name; without names that two bodies use for different things."""
    infos: dict[str, onnx.ValueInfoProto] = {}
    ambiguous: set[str] = set()
    for info in _all_infos(graph):
        if infos.setdefault(info.name, info).type != info.type:
            ambiguous.add(info.name)
    return {name: info for name, info in infos.items() if name not in ambiguous}


def _all_infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.value_info
    yield from graph.output
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _all_infos(inner)


def _merge(value: ir.Value, info: onnx.ValueInfoProto) -> bool:
    """Add what the inferred type knows and the value does not; say whether that was anything."""
    inferred_type = ir.serde.deserialize_type_proto_for_type(info.type)
    changed = False
    if value.type is None and inferred_type is not None:
        value.type = inferred_type
        changed = True
    elif inferred_type is not None and value.type != inferred_type:
        return False
    inferred = _dims(info.type)
    if inferred is None:
        return changed
    if value.shape is None:
        value.shape = ir.Shape(inferred)
        return True
    if len(value.shape) != len(inferred):
        return changed
    known = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    merged = [
        new if old is None or (isinstance(new, int) and not isinstance(old, int)) else old
        for old, new in zip(known, inferred, strict=True)
    ]
    if merged == known:
        return changed
    value.shape = ir.Shape(merged)
    return True


def _dims(type_proto: onnx.TypeProto) -> list[int | str | None] | None:
    """The dimensions of a tensor type, or None when it is none or its rank is unknown."""
    if not type_proto.HasField("tensor_type") or not type_proto.tensor_type.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)
        for dim in type_proto.tensor_type.shape.dim
    ]
