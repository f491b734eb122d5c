"""Which observer of a linear layer's input fits the layer."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute, ints_attribute, string_attribute
from onnxopt.analysis.values import dims
from onnxopt.numerics.layer_inputs import ConvolutionInput, LayerInput, ProductInput

__all__ = ["layer_input"]


def layer_input(node: ir.Node) -> LayerInput | None:
    """How the first input of Conv, Gemm or MatMul becomes rows; None where that is not known.

    The shape of the second input must be known for Conv, and be a matrix for the others.
    """
    weights = dims(node.inputs[1]) if len(node.inputs) > 1 else None
    if weights is None:
        return None
    if node.op_type == "MatMul":
        return ProductInput() if len(weights) == 2 else None
    if node.op_type == "Gemm":
        return ProductInput(
            transposed=bool(int_attribute(node, "transA", 0)),
            weights_transposed=bool(int_attribute(node, "transB", 0)),
        )
    if node.op_type != "Conv" or len(weights) < 3:
        return None
    kernel = tuple(size for size in weights[2:] if isinstance(size, int))
    if len(kernel) != len(weights) - 2:
        return None
    ones = (1,) * len(kernel)
    return ConvolutionInput(
        kernel=kernel,
        strides=ints_attribute(node, "strides") or ones,
        dilations=ints_attribute(node, "dilations") or ones,
        pads=ints_attribute(node, "pads") or (0,) * (2 * len(kernel)),
        auto_pad=string_attribute(node, "auto_pad", "NOTSET"),
        groups=int_attribute(node, "group", 1),
    )
