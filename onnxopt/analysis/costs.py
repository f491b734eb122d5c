"""What a run of a model costs in multiply-accumulates, as formulas over its dynamic sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
import onnx.inliner
import onnx.shape_inference
import onnx_ir as ir

from onnxopt.analysis.expressions import Expression, number
from onnxopt.analysis.macs import has_macs, macs
from onnxopt.analysis.symbolic import SymbolicFacts
from onnxopt.analysis.values import dims
from onnxopt.errors import FeedError
from onnxopt.model import from_proto, light_proto, prove_shape
from onnxopt.op_traits import is_standard
from onnxopt.traversal import all_graphs, bodies

__all__ = ["costs_by_operator", "formula_text", "operator_name", "total_of"]


def operator_name(node: ir.Node) -> str:
    """The operator of a node, with its domain where that is not the standard one."""
    return node.op_type if is_standard(node) else f"{node.domain}.{node.op_type}"


def costs_by_operator(
    model: ir.Model, shapes: Mapping[str, tuple[int, ...]], notes: list[str]
) -> dict[str, tuple[list[Expression], int]]:
    """By operator: the formulas of the nodes whose shapes are known, and how many others there are.

    Of an If the more expensive branch counts where both are numbers, else both; bodies of Loop and
    Scan count once.

    Args:
        model: The model.
        shapes: Shapes of inputs by name, -1 for an open size.
        notes: What to know about the numbers is added.

    Raises:
        FeedError: When a shape does not fit the model.
    """
    inferred = _with_shapes(model, shapes, notes)
    found: dict[str, tuple[list[Expression], int]] = {}
    for node, cost in _graph_costs(inferred.graph, SymbolicFacts()):
        known, unknown = found.get(operator_name(node), ([], 0))
        if cost is None:
            found[operator_name(node)] = known, unknown + 1
        else:
            found[operator_name(node)] = [*known, cost], unknown
    loops = sorted({node.op_type for node in inferred.graph.all_nodes()} & {"Loop", "Scan"})
    if loops:
        notes.append(f"MACs count the body of each {' and '.join(loops)} once.")
    return found


def _graph_costs(graph: ir.Graph, facts: SymbolicFacts) -> list[tuple[ir.Node, Expression | None]]:
    costs: list[tuple[ir.Node, Expression | None]] = []
    for node in graph:
        if has_macs(node):
            costs.append((node, macs(node, facts)))
        inside = [_graph_costs(body, facts) for body in bodies(node)]
        if node.op_type == "If" and is_standard(node):
            inside = _dearest(inside)
        costs.extend(cost for body in inside for cost in body)
    return costs


def _dearest(
    bodies: list[list[tuple[ir.Node, Expression | None]]],
) -> list[list[tuple[ir.Node, Expression | None]]]:
    totals: list[int] = []
    for body in bodies:
        known = [cost for _, cost in body if cost is not None]
        constant = total_of(known).constant
        if constant is None or len(known) < len(body):
            return bodies
        totals.append(constant)
    return [bodies[totals.index(max(totals))]] if bodies else []


def total_of(costs: Iterable[Expression]) -> Expression:
    """The sum of formulas; 0 for none."""
    total = number(0)
    for cost in costs:
        total = total + cost
    return total


def formula_text(formula: Expression) -> str:
    """A formula as ``1200*batch + 3*batch*length*length``, the largest powers first."""
    terms = [
        "*".join([str(factor), *(atom.name for atom in monomial)])
        for monomial, factor in reversed(formula.terms)
    ]
    return " + ".join(terms) or "0"


def _with_shapes(
    model: ir.Model, shapes: Mapping[str, tuple[int, ...]], notes: list[str]
) -> ir.Model:
    """The model without its large weights, with functions inlined and all shapes that follow."""
    proto = light_proto(model)
    _fix_sizes(proto, _bound_symbols(model, shapes))
    for value in proto.graph.input:
        if value.name in shapes:
            _set_shape(value, shapes[value.name])
    try:
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        notes.append(f"Shapes could not be inferred: {str(error).strip().splitlines()[0]}")
    inferred = from_proto(proto)
    for graph in all_graphs(inferred.graph):
        for output in graph.outputs:
            prove_shape(output, output.shape)
    return inferred


def _bound_symbols(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes of symbols that the given shapes fix; the same symbol is the same size everywhere."""
    inputs = {value.name: value for value in model.graph.inputs}
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            known = ", ".join(str(each) for each in inputs)
            raise FeedError(f"the model has no input '{name}'; it has {known}")
        stated = dims(inputs[name])
        if stated is not None and len(stated) != len(shape):
            raise FeedError(f"input '{name}' has {len(stated)} dimensions, not {len(shape)}")
        for dim, size in zip(stated or (), shape, strict=stated is not None):
            if isinstance(dim, str) and size >= 0:
                symbols[dim] = size
            elif isinstance(dim, int) and size not in (dim, -1):
                raise FeedError(f"input '{name}' has a fixed size {dim} where {size} was given")
    return symbols


def _fix_sizes(proto: onnx.ModelProto, symbols: Mapping[str, int]) -> None:
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]


def _set_shape(value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    dimensions = value.type.tensor_type.shape.dim
    while len(dimensions) < len(shape):
        dimensions.add()
    for dim, size in zip(dimensions, shape, strict=True):
        if size >= 0:
            dim.dim_value = size
