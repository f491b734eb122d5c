"""How calibration sees the input of a product."""

from __future__ import annotations

from onnxopt.analysis.attributes import int_attribute, ints_attribute, string_attribute
from onnxopt.numerics.layer_inputs import ConvolutionInput, LayerInput, ProductInput
from onnxopt.regions import Product

__all__ = ["layer_input"]


def layer_input(product: Product) -> LayerInput:
    """How the input of a product becomes rows of a matrix product."""
    node = product.node
    if node.op_type != "Conv":
        return ProductInput()
    axes = product.weights.ndim - 2
    ones = (1,) * axes
    return ConvolutionInput(
        kernel=product.weights.shape[2:],
        strides=ints_attribute(node, "strides") or ones,
        dilations=ints_attribute(node, "dilations") or ones,
        pads=ints_attribute(node, "pads") or (0,) * (2 * axes),
        auto_pad=string_attribute(node, "auto_pad", "NOTSET"),
        groups=int_attribute(node, "group", 1),
    )
