"""How channels come through each operator: one rule an operator, by the name of the operator."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.channels.operators.channelwise import HANDLERS as CHANNELWISE
from onnxopt.channels.operators.elementwise import HANDLERS as ELEMENTWISE
from onnxopt.channels.operators.elementwise import elementwise
from onnxopt.channels.operators.integer_products import HANDLERS as INTEGER_PRODUCTS
from onnxopt.channels.operators.movement import HANDLERS as MOVEMENT
from onnxopt.channels.operators.products import HANDLERS as PRODUCTS
from onnxopt.channels.operators.quantization import HANDLERS as QUANTIZATION
from onnxopt.channels.operators.recurrent import HANDLERS as RECURRENT
from onnxopt.channels.operators.resizing import HANDLERS as RESIZING
from onnxopt.channels.tracer import Handler
from onnxopt.op_traits import Trait, has_trait, is_standard

__all__ = ["handler_for"]

_HANDLERS: dict[str, Handler] = {
    **ELEMENTWISE,
    **PRODUCTS,
    **INTEGER_PRODUCTS,
    **CHANNELWISE,
    **RESIZING,
    **MOVEMENT,
    **QUANTIZATION,
    **RECURRENT,
}


def handler_for(node: ir.Node) -> Handler | None:
    """The rule of a node's operator; None when channels are not followed through it."""
    if not is_standard(node):
        return None
    if has_trait(node, Trait.UNARY) or has_trait(node, Trait.BROADCAST):
        return elementwise
    return _HANDLERS.get(node.op_type)
