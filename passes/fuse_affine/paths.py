"""Operators an affine step passes through unchanged, and idioms it must not be pulled out of.

f passes s x + t when f(s x + t) = s f(x) + t: means and maxima do (maxima for s > 0), rectifiers do
for s > 0 and t = 0, products with something else for t = 0, and whatever only moves elements does
when s and t are single numbers.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.analysis import values
from onnxopt.analysis.attributes import int_attribute, string_attribute
from onnxopt.op_traits import Trait, has_trait, is_standard
from onnxopt.rewriting import Context, Refuse

from ..shared.affine import Affine, Step, read_step
from .linear import is_unpadded

__all__ = ["carry", "is_path", "runtime_idiom"]

_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool"})
_RECTIFIERS = frozenset({"Relu", "LeakyRelu", "PRelu"})
_MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile"})
_MOVES |= {"Slice", "Split", "Gather", "Identity", "DepthToSpace", "SpaceToDepth"}


def is_path(node: ir.Node) -> bool:
    """Whether a step may pass through this operator; `carry` says under which conditions."""
    return is_standard(node) and (
        node.op_type in _POOLS | _RECTIFIERS | _MOVES | {"Resize", "Mul", "Div"}
    )


def carry(node: ir.Node, index: int, affine: Affine) -> Affine:
    """The step after the node that equals this step on the node's input ``index``.

    Raises:
        Refuse: When there is none.
    """
    if node.op_type in _POOLS:
        return _through_pool(node, affine)
    if node.op_type in _RECTIFIERS:
        if index != 0:
            raise Refuse("it is read as a slope")
        _require(not affine.shifts, "a shift does not pass a rectifier")
        _require(bool((affine.scale > 0).all()), "only a positive scale passes a rectifier")
        return affine
    if node.op_type in ("Mul", "Div"):
        return _through_product(node, index, affine)
    if index != 0:
        raise Refuse("it is read as something else than data")
    _require(affine.is_uniform, "a scale by channel does not pass what moves elements")
    if node.op_type == "Resize":
        mode = string_attribute(node, "coordinate_transformation_mode", "half_pixel")
        _require(mode != "tf_crop_and_resize", "the resize extrapolates")
        antialias = int_attribute(node, "antialias", 0) or int_attribute(node, "exclude_outside", 0)
        _require(not antialias, "the weights of the resize are not known to sum to one")
    return affine.uniform()


def _through_pool(node: ir.Node, affine: Affine) -> Affine:
    rank = values.rank(node.inputs[0])
    known = values.dims(node.inputs[0])
    if rank is None or known is None or rank < 3:
        raise Refuse("the rank is unknown")
    if not affine.is_uniform:
        if not isinstance(known[1], int):
            raise Refuse("the number of channels is unknown")
        affine.along(1, rank, known[1])  # refuses what varies within a channel
    if node.op_type in ("MaxPool", "GlobalMaxPool"):
        _require(bool((affine.scale > 0).all()), "only a positive scale passes a maximum")
        _require(
            not any(output.uses() or output.is_graph_output() for output in node.outputs[1:]),
            "the positions of the maxima are read",
        )
    elif node.op_type == "AveragePool" and affine.shifts:
        kernel = node.attributes.get("kernel_shape")
        shape = tuple(kernel.as_ints()) if kernel is not None and not kernel.is_ref() else (0,)
        inside = not int_attribute(node, "count_include_pad", 0) or is_unpadded(node, shape)
        _require(inside, "the average counts padding, which the shift does not reach")
    return affine


def _through_product(node: ir.Node, index: int, affine: Affine) -> Affine:
    """(s x) z = s (x z), however x and z broadcast, since s broadcasts like them."""
    _require(index == 0 or node.op_type == "Mul", "it is a divisor")
    _require(not affine.shifts, "a shift does not pass a product")
    return affine


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise Refuse(reason)


def runtime_idiom(step: Step, context: Context) -> str | None:
    """Why a step must stay where it is because runtimes know the idiom it is part of.

    ONNX Runtime fuses GELU (x/2 (1 + erf(x/√2)) and its tanh form) and layer normalization spelled
    in small operators, when all of them are there: the constants are part of the pattern, gain and
    bias of the normalization too.
    """
    origin = _origin(step.source, context)
    if origin is not None and _is_normalizing(origin, context):
        return "it is the gain or bias of a normalization spelled out"
    if origin is not None and _is_gelu_part(origin, context):
        return "it is part of a GELU spelled out"
    for reader in step.output.consumers():
        if reader.op_type == "Mul" and _is_gelu_part(reader, context):
            return "it is part of a GELU spelled out"
    return None


def _origin(value: ir.Value | None, context: Context) -> ir.Node | None:
    """What makes a value, apart from affine steps and casts; looks a few nodes back."""
    for _ in range(4):
        node = value.producer() if value is not None else None
        if node is None or not is_standard(node):
            return None
        if node.op_type == "Cast":
            value = node.inputs[0]
            continue
        try:
            step = read_step(node, context)
        except Refuse:
            return node
        if step is None:
            return node
        value = step.source
    return None


def _is_normalizing(node: ir.Node, context: Context) -> bool:
    """Whether it multiplies by the reciprocal of a root, or divides by a root."""
    if node.op_type not in ("Mul", "Div") or len(node.inputs) != 2:
        return False
    origins = [_origin(value, context) for value in node.inputs]
    return any(each is not None and _is_root(each, context) for each in origins)


def _is_root(node: ir.Node, context: Context) -> bool:
    if node.op_type in ("Sqrt", "Pow"):
        return True
    if node.op_type in ("Reciprocal", "Div"):
        inner = _origin(node.inputs[-1], context)
        return inner is not None and inner.op_type == "Sqrt"
    return False


def _is_gelu_part(node: ir.Node, context: Context) -> bool:
    if _is_gelu_curve(node, context):
        return True
    if node.op_type != "Mul" or not has_trait(node, Trait.BROADCAST):
        return False
    origins = [_origin(value, context) for value in node.inputs]
    return any(each is not None and _is_gelu_curve(each, context) for each in origins)


def _is_gelu_curve(node: ir.Node, context: Context) -> bool:
    """Whether it is an Erf, or a Tanh of something like ``x + c x^3`` or ``x (1 + c x^2)``."""
    if node.op_type == "Tanh":
        inner = _origin(node.inputs[0], context)
        return inner is not None and inner.op_type in ("Add", "Mul")
    return node.op_type == "Erf"
