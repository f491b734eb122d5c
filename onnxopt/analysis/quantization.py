"""Is a model quantized already?"""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.op_traits import Trait, has_trait, is_standard
from onnxopt.traversal import all_nodes, root_graphs

__all__ = ["is_quantized", "is_quantized_node"]

#: Operators of whole numbers in the standard domain.
_STANDARD = frozenset(["QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"])
#: Of ONNX Runtime's own domain, besides those that begin with QLinear.
_MICROSOFT = frozenset(
    [
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "GatherBlockQuantized",
        "MatMulBnb4",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
        "QMoE",
        "QOrderedMatMul",
    ]
)


def is_quantized(model: ir.Model) -> bool:
    """Whether any node, of bodies and functions too, quantizes or computes on whole numbers."""
    return any(is_quantized_node(node) for graph in root_graphs(model) for node in all_nodes(graph))


def is_quantized_node(node: ir.Node) -> bool:
    """Whether a node quantizes, or computes on numbers that stand for others by a scale."""
    if has_trait(node, Trait.QUANTIZATION):
        return True
    if is_standard(node):
        return node.op_type in _STANDARD
    if node.domain != "com.microsoft":
        return False
    return (
        node.op_type in _MICROSOFT
        or node.op_type.startswith("QLinear")
        or node.op_type in ("QuantizeLinear", "DequantizeLinear")
    )
