"""Attributes and attribute-like inputs of nodes, the same for every opset revision.

Several operators took axes, pads or bounds as attributes in old opsets and take them as inputs in
newer ones; the functions here hide the difference. Where a value is only known when the model runs,
or refers to a function's attribute, they raise `Refuse` with the reason.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.analysis.values import constant_array
from onnxopt.rewriting import Refuse

__all__ = [
    "axes",
    "clip_bounds",
    "constant_input",
    "float_attribute",
    "int_attribute",
    "ints_attribute",
    "string_attribute",
]


def _attribute(node: ir.Node, name: str) -> ir.Attr | None:
    attribute = node.attributes.get(name)
    if attribute is not None and attribute.is_ref():
        raise Refuse(f"attribute {name} is a parameter of the function")
    return attribute


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    attribute = _attribute(node, name)
    return default if attribute is None else attribute.as_int()


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """A float attribute."""
    attribute = _attribute(node, name)
    return default if attribute is None else attribute.as_float()


def string_attribute(node: ir.Node, name: str, default: str) -> str:
    """A string attribute."""
    attribute = _attribute(node, name)
    return default if attribute is None else attribute.as_string()


def ints_attribute(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """An attribute of integers, or None when it is not given."""
    attribute = _attribute(node, name)
    return None if attribute is None else tuple(attribute.as_ints())


def constant_input(node: ir.Node, index: int, what: str) -> tuple[int, ...] | None:
    """Integers of a constant input, or None when the optional input is not given."""
    if len(node.inputs) <= index or node.inputs[index] is None:
        return None
    array = constant_array(node.inputs[index])
    if array is None:
        raise Refuse(f"{what} is not constant")
    return tuple(int(number) for number in array.reshape(-1))


def axes(node: ir.Node, index: int = 1) -> tuple[int, ...] | None:
    """Axes of Squeeze, Unsqueeze or a reduction: attribute ``axes`` or the input at ``index``."""
    given = ints_attribute(node, "axes")
    return given if given is not None else constant_input(node, index, "axes")


def clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Lower and upper bound of Clip; None where there is none."""
    bounds: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        attribute = _attribute(node, name)
        if attribute is not None:
            bounds.append(attribute.as_float())
        elif len(node.inputs) > index and node.inputs[index] is not None:
            array = constant_array(node.inputs[index], limit=1)
            if array is None or array.size != 1:
                raise Refuse("a bound of Clip is not constant")
            bounds.append(float(array.reshape(())))
        else:
            bounds.append(None)
    return bounds[0], bounds[1]
