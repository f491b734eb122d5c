"""Find out element types and shapes that the file does not state.

Runs ONNX's own inference, with propagation of shape data, on the model without its large weights,
and merges what it finds: a known number replaces a symbol or an unknown, a symbol replaces an
unknown, nothing known is ever given up. The facts serve the other passes; those that the file did
not state are not written to the output, which would grow by them. Shapes that are stated for
outputs of graphs are left out of it: nobody holds a model to them (`onnxopt.model.proven_shape`).
So are numbers stated for inner values that contradict the operators, which are left over where
somebody made the inputs dynamic; the file gets the right ones.

Exact: nothing the model computes changes. Left alone: values whose inferred type or rank
contradicts the stated one, names that two bodies of control flow use for different values, the
bodies of functions, and everything when inference fails as a whole or is known to tell something
else than ONNX Runtime does.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator

import onnx
import onnx_ir as ir

from onnxopt.analysis.symbolic_values import FAR
from onnxopt.analysis.values import constant_array, dims
from onnxopt.model import light_proto, prove_shape, proven_shape, states_no_inner_shape
from onnxopt.op_traits import is_standard
from onnxopt.pass_contract import Outcome, Pass, Refusal
from onnxopt.traversal import all_nodes, nodes_by_operator

__all__ = ["InferShapes"]

logger = logging.getLogger(__name__)

#: Key of `onnx_ir.Model.meta`: the shapes that the file states were held against the operators.
_META_MENDED = "onnxopt.mended_shapes"


class InferShapes(Pass):
    """Annotate values with the element types and shapes that ONNX's inference finds."""

    name = "infer-shapes"

    def run(self, model: ir.Model) -> Outcome:
        """Annotate in place; ``modified`` says whether anything new was found."""
        outcome = Outcome(model, False, annotates=True)
        if (ambiguous := _ambiguous_slice(model)) is not None:
            reason = "inference and the runtime do not agree on an open end of a negative step"
            outcome.refusals.append(Refusal(self.name, reason, ambiguous.name or "Slice"))
            return outcome
        try:
            for value in _mend_stated_sizes(model):
                outcome.rewritten["mend-stated-size"] += 1
                logger.info("'%s' has another shape than the file says", value.name)
            open_values = [value for value in _values(model) if not _is_settled(value)]
            found = _infer(model) if open_values else {}
        except Exception as error:  # the library has no error type of its own for all its checks
            logger.info("shape inference failed", exc_info=error)
            reason = f"inference failed: {str(error).strip().splitlines()[0]}"
            outcome.refusals.append(Refusal(self.name, reason))
            return outcome
        symbols = _symbols(model)
        for value in open_values:
            info = found.get(value.name or "")
            if info is not None and _merge(value, info, symbols):
                outcome.rewritten[self.name] += 1
        outcome.modified = bool(outcome.rewritten)
        return outcome


def _ambiguous_slice(model: ir.Model) -> ir.Node | None:
    """A Slice that goes backwards to an open end: empty by inference, not so in ONNX Runtime."""
    for _, node in nodes_by_operator(model).get("Slice", ()):
        if len(node.inputs) < 5 or not is_standard(node):
            continue
        ends, steps = (constant_array(node.inputs[index]) for index in (2, 4))
        if ends is None or steps is None or ends.shape != steps.shape:
            continue
        if bool(((steps < 0) & (ends >= FAR)).any()):
            return node
    return None


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for node in all_nodes(model.graph):  # a function's types depend on who calls it
        yield from node.outputs


def _infer(model: ir.Model, trust_stated: bool = True) -> dict[str, onnx.ValueInfoProto]:
    """What ONNX's inference finds, by name, starting from what is known or from inputs alone."""
    light = light_proto(model)
    _forget_shapes(light.graph, inner=not trust_stated)
    return _infos(onnx.shape_inference.infer_shapes(light, data_prop=True).graph)


def _forget_shapes(graph: onnx.GraphProto, inner: bool) -> None:
    """Forget the stated shapes of outputs, and of inner values if so wished."""
    for output in graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    if inner:
        del graph.value_info[:]
    for body in _bodies(graph):
        _forget_shapes(body, inner)


def _mend_stated_sizes(model: ir.Model) -> list[ir.Value]:
    """Correct what the file states of inner values where the operators say something else.

    Whoever makes the batch of the inputs dynamic in a finished model leaves the old size in the
    shapes of all that follows. A size that comes from the inputs by the operators alone is right
    then, be it a number or a symbol of the inputs.

    Returns:
        The values that had another shape.
    """
    if _META_MENDED in model.meta or states_no_inner_shape(model):
        return []
    model.meta[_META_MENDED] = True
    symbols = _symbols(model)
    found = _infer(model, trust_stated=False)
    mended: list[ir.Value] = []
    for value in _values(model):
        info = found.get(value.name or "")
        certain = None if info is None else _dims(info.type)
        if value.is_graph_output() or value.shape is None or certain is None:
            continue
        if len(certain) != len(value.shape):
            value.shape = None
            mended.append(value)
            continue
        stated = value.shape.dims
        corrected = [
            new if isinstance(old, int) and (isinstance(new, int) or new in symbols) else old
            for old, new in zip(stated, certain, strict=True)
        ]
        if corrected != list(stated):
            value.shape = ir.Shape(corrected)
            mended.append(value)
    return mended


def _symbols(model: ir.Model) -> set[str]:
    """Symbolic sizes of the inputs."""
    sizes = (dim for value in model.graph.inputs for dim in dims(value) or ())
    return {dim for dim in sizes if isinstance(dim, str)}


def _is_settled(value: ir.Value) -> bool:
    """Whether inference could add nothing: the type is known and every dimension has a name."""
    shape = proven_shape(value)
    return (
        value.type is not None
        and shape is not None
        and all(isinstance(dim, int) or dim.value is not None for dim in shape)
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
    for body in _bodies(graph):
        yield from _all_infos(body)


def _bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _merge(value: ir.Value, info: onnx.ValueInfoProto, symbols: Collection[str]) -> bool:
    """Add what the inferred type knows and the value does not; say whether that was anything.

    Of an output's shape only numbers and symbols of the inputs are kept: inference makes up symbols
    of its own, and another run, which is not told of this one, would make them up again.
    """
    inferred_type = ir.serde.deserialize_type_proto_for_type(info.type)
    changed = False
    if value.type is None and inferred_type is not None:
        value.type = inferred_type
        changed = True
    elif inferred_type is not None and value.type != inferred_type:
        return False
    inferred = _dims(info.type)
    shape = proven_shape(value)
    if inferred is None or (shape is not None and len(shape) != len(inferred)):
        return changed
    is_output = value.is_graph_output() and not value.is_graph_input()
    if is_output:
        inferred = [dim if isinstance(dim, int) or dim in symbols else None for dim in inferred]
    stated = [None] * len(inferred) if shape is None else shape.dims
    known = [dim.value if isinstance(dim, ir.SymbolicDim) else dim for dim in stated]
    merged = [
        new if old is None or (isinstance(new, int) and not isinstance(old, int)) else old
        for old, new in zip(known, inferred, strict=True)
    ]
    if shape is not None and merged == known:
        return changed
    if is_output:
        prove_shape(value, ir.Shape(merged))
    if not is_output or value.shape is None:
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
