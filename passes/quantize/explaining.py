"""Why each node of a graph is in 8 bits, or is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from onnxopt.analysis.quantization import is_quantized_node
from onnxopt.findings import Treatment
from onnxopt.layers import layer_name
from onnxopt.op_traits import Trait, has_trait, is_standard
from onnxopt.regions import FollowerKind, Product, Recurrence, follower, recurrences
from onnxopt.traversal import all_nodes, bodies, root_graphs

from .numbers import Numbers
from .plan import Mode, Plan
from .territory import Territory

__all__ = ["all_left", "treatments"]

_INT8 = "int8"
_FLOAT = "float"
_MODES: Mapping[Mode, str] = {
    Mode.STATIC: "8 bits in and out, ranges from calibration",
    Mode.STATIC_INPUT: "8 bits in, float out, ranges from calibration",
    Mode.DYNAMIC: "8 bits in, float out, ranges of each run's own input",
}
_FOLLOWERS: Mapping[FollowerKind, str] = {
    FollowerKind.PASS: "moves 8-bit numbers",
    FollowerKind.COMPUTE: "between 8-bit layers, and has an 8-bit kernel",
    FollowerKind.HARD_SIGMOID: "an 8-bit addition that saturates",
    FollowerKind.HARD_SWISH: "an 8-bit addition that saturates, and an 8-bit product",
    FollowerKind.AFFINE: "costs nothing: scale and zero point of the same numbers change",
}
#: Why what is computed by these is never quantized, where that is not for want of a kernel.
_UNWISE: Mapping[str, str] = {
    "Softmax": "its 8-bit kernel is slower than the float one",
    "AveragePool": "its 8-bit kernel is slower than the float one",
    "LeakyRelu": "its 8-bit kernel is slower than the float one",
    "Gelu": "8 bits inside it would undo the runtime's fused kernel",
    "Erf": "8 bits around it would undo the runtime's fused GELU",
    "LayerNormalization": "there is no 8-bit kernel, and it needs the precision",
}
_RECURRENT = "8-bit weights, the range of each run's own inputs and of each step's own state"


def treatments(
    model: ir.Model, plan: Plan, numbers: Numbers, reasons: Mapping[str, str]
) -> list[Treatment]:
    """How each node of a float model is computed under a plan, of bodies and functions too.

    Args:
        model: The model.
        plan: What becomes of each product.
        numbers: Ranges.
        reasons: Why products stay float, by name of the node or key.
    """
    territory = Territory(model.graph, plan, numbers)
    told: dict[ir.Node, tuple[str, str]] = {}
    for product in territory.products.values():
        told.update(_of_product(product, territory, reasons))
    for layer in recurrences(model.graph):
        if isinstance(layer, Recurrence) and plan.mode(layer.key) is Mode.DYNAMIC:
            told[layer.node] = (_INT8, _RECURRENT)
    made = [*_all(model.graph, told, territory, reasons), *_inside_functions(model)]
    return made if numbers.bits == 8 else [_in_16_bits(each) for each in made]


def _in_16_bits(found: Treatment) -> Treatment:
    """The same of 16-bit activations."""
    reason = found.reason.replace("8 bits", "16 bits").replace("8-bit", "16-bit")
    precision = "int16" if found.precision == _INT8 else found.precision
    return dataclasses.replace(found, precision=precision, reason=reason)


def all_left(model: ir.Model, reason: str, reasons: Mapping[str, str]) -> list[Treatment]:
    """The nodes of a model in which nothing is quantized.

    Args:
        model: The model.
        reason: Why nothing is.
        reasons: Why single nodes are not, by name.
    """
    return [
        _treatment(
            node,
            "" if is_quantized_node(node) else _FLOAT,
            reasons.get(layer_name(node), reason),
        )
        for graph in root_graphs(model)
        for node in all_nodes(graph)
    ]


def _inside_functions(model: ir.Model) -> Iterator[Treatment]:
    for graph in root_graphs(model):
        if graph is not model.graph:
            for node in all_nodes(graph):
                yield _treatment(node, _FLOAT, "is inside a local function")


def _all(
    graph: ir.Graph,
    told: Mapping[ir.Node, tuple[str, str]],
    territory: Territory,
    reasons: Mapping[str, str],
) -> Iterator[Treatment]:
    for node in graph:
        precision, reason = told.get(node) or _of_other(node, territory, reasons)
        yield _treatment(node, precision, reason)
        for body in bodies(node):
            for inner in all_nodes(body):
                yield _treatment(inner, _FLOAT, "is inside the body of control flow")


def _of_product(
    product: Product, territory: Territory, reasons: Mapping[str, str]
) -> Iterator[tuple[ir.Node, tuple[str, str]]]:
    """The nodes of a product."""
    mode, layer = territory.mode(product), layer_name(product.node)
    if mode is Mode.FLOAT:
        name = product.node.name or product.key
        reason = reasons.get(product.key) or reasons.get(name, "not chosen")
        yield product.node, (_FLOAT, reason)
        for node in product.nodes[1:]:
            yield node, (_FLOAT, f"goes with '{layer}', which is float")
        return
    yield product.node, (_INT8, _MODES[mode])
    if product.bias_node is not None:
        how = "computed with" if mode is Mode.DYNAMIC else "a float subtraction behind"
        yield product.bias_node, (_FLOAT, f"the bias: {how} '{layer}'")
    if product.clamp is not None:
        cut = (
            mode is Mode.STATIC and territory.effective(product.unclamped) is not product.unclamped
        )
        yield (
            product.clamp.node,
            (
                (_INT8, f"costs nothing: the range of '{layer}' ends where it cuts")
                if cut
                else (_FLOAT, f"behind '{layer}', which gives floats")
            ),
        )


def _of_other(node: ir.Node, territory: Territory, reasons: Mapping[str, str]) -> tuple[str, str]:
    """A node that is no part of a product."""
    following = territory.followers.get(node)
    if following is not None:
        return _INT8, _FOLLOWERS[following.kind]
    own = reasons.get(layer_name(node))
    if own is not None:
        return _FLOAT, own
    if bodies(node):
        return _FLOAT, "holds bodies of control flow, which are left in float"
    if not any(_may_be_float(value) for value in node.outputs):
        return "", "computes no floating-point numbers"
    if has_trait(node, Trait.QUANTIZATION):
        return "", "quantized already"
    clamp = territory.clamp_of(node)
    if clamp is not None:
        return _INT8, "costs nothing: the range of what it reads ends where it cuts"
    possible = follower(node)
    if possible is not None:
        return _FLOAT, territory.why_float(possible)
    if node.op_type in _UNWISE and is_standard(node):
        return _FLOAT, _UNWISE[node.op_type]
    if not is_standard(node):
        return _FLOAT, f"an operator of the domain {node.domain}"
    return _FLOAT, "the runtime has no 8-bit kernel for it"


def _may_be_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _treatment(node: ir.Node, precision: str, reason: str) -> Treatment:
    outputs = tuple(value.name or "" for value in node.outputs)
    return Treatment(layer_name(node), node.op_type, precision, reason, outputs)
