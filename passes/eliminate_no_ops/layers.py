"""Pooling, resizing, reducing and Einsum, where each element of the output is one of the input.

Exact for finite numbers; a pool over one element may turn an infinity into the largest number, and
without it the infinity stays.
"""

from __future__ import annotations

from typing import Any, ClassVar

import onnx_ir as ir

from onnxopt.analysis.attributes import axes, int_attribute, ints_attribute, string_attribute
from onnxopt.analysis.filled import holds_shape_of, is_filled_with
from onnxopt.analysis.values import constant_array, dims
from onnxopt.rewriting import Context, Refuse, RewriteRule

from .forwarding import ForwardingRule, inferred_to_stay

__all__ = ["LAYER_RULES"]


class _Pool(ForwardingRule):
    """A pool that looks at one element at a time."""

    name = "pool-of-one"
    anchors: ClassVar[tuple[str, ...]] = ("MaxPool", "AveragePool")

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        kernel, strides = ints_attribute(node, "kernel_shape"), ints_attribute(node, "strides")
        if kernel is None or set(kernel) != {1} or set(strides or (1,)) != {1}:
            return None
        if any(ints_attribute(node, "pads") or ()):
            return None
        if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
            raise Refuse("the indices are read")
        return node.inputs[0]


class _GlobalPool(ForwardingRule):
    """A global pool over an image of one pixel."""

    name = "global-pool-of-one"
    anchors: ClassVar[tuple[str, ...]] = ("GlobalAveragePool", "GlobalMaxPool")

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        source = node.inputs[0]
        known = dims(source)
        if known is None:
            raise Refuse("the input's shape is not known")
        return source if all(dim == 1 for dim in known[2:]) else None


class _Resize(ForwardingRule):
    """Resize and Upsample to the size that is there already.

    With a scale of exactly 1 every output coordinate is an input coordinate, at which all modes
    give the element itself: (x + 0.5) / 1 - 0.5 = x, x / 1 = x, x (n - 1) / (n - 1) = x. Not so in
    the coordinate modes that crop or that shift by half a pixel.
    """

    name = "resize-to-same-size"
    anchors: ClassVar[tuple[str, ...]] = ("Resize", "Upsample")
    _shifting: ClassVar[tuple[str, ...]] = ("tf_crop_and_resize", "tf_half_pixel_for_nn")

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        source = node.inputs[0]
        if source is None or not self._keeps_size(node, source, context):
            return None
        mode = string_attribute(node, "coordinate_transformation_mode", "half_pixel")
        if mode in self._shifting:
            raise Refuse("the coordinate mode shifts or crops")
        return source

    def _keeps_size(self, node: ir.Node, source: ir.Value, context: Context) -> bool:
        if "scales" in node.attributes:  # Upsample up to opset 8
            return all(scale == 1 for scale in node.attributes["scales"].as_floats())
        sizes = node.inputs[3] if len(node.inputs) > 3 else None
        if sizes is not None:
            if inferred_to_stay(node.outputs[0], source):
                return True
            which = ints_attribute(node, "axes")
            return (
                _holds_sizes(sizes, source, which)
                if constant_array(sizes) is not None
                else which is None and holds_shape_of(sizes, source)
            )
        place = 1 if node.op_type == "Upsample" or context.opset(node) < 11 else 2
        scales = node.inputs[place] if len(node.inputs) > place else None
        return is_filled_with(scales, 1)


def _holds_sizes(sizes: ir.Value, source: ir.Value, which: tuple[int, ...] | None) -> bool:
    """Whether constant sizes are those of the source, on the given axes or on all of them."""
    wanted, known = constant_array(sizes), dims(source)
    if wanted is None or known is None:
        raise Refuse("the input's shape is not known")
    chosen = range(len(known)) if which is None else which
    return len(wanted) == len(chosen) and all(
        known[axis] == int(size) for axis, size in zip(chosen, wanted, strict=True)
    )


class _Reduce(ForwardingRule):
    """A reduction over no axes, or over axes of size 1 that are kept."""

    name = "reduce-nothing"
    anchors: ClassVar[tuple[str, ...]] = (
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
    )

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        source = node.inputs[0]
        given = axes(node)
        if not given and int_attribute(node, "noop_with_empty_axes", 0) == 1:
            return source
        known = dims(source)
        if known == ():
            return source
        if int_attribute(node, "keepdims", 1) == 0:
            return None
        if known is None:
            raise Refuse("the input's shape is not known")
        reduced = [known[axis] for axis in given or range(len(known))]
        if any(isinstance(dim, int) and dim != 1 for dim in reduced):
            return None
        if any(dim != 1 for dim in reduced):
            raise Refuse("a reduced dimension is not known to be one")
        return source


class _Einsum(ForwardingRule):
    """Einsum that names the axes of one tensor and puts out the same."""

    name = "einsum-of-one"
    anchors: ClassVar[tuple[str, ...]] = ("Einsum",)

    def find(self, node: ir.Node, context: Context) -> ir.Value | None:
        left, arrow, right = string_attribute(node, "equation", "").replace(" ", "").partition("->")
        letters = left.replace("...", "")
        if len(node.inputs) != 1 or not arrow or left != right or len(set(letters)) < len(letters):
            return None
        return node.inputs[0]


#: In the order in which they are tried.
LAYER_RULES: tuple[RewriteRule[Any], ...] = (
    _Pool(),
    _GlobalPool(),
    _Resize(),
    _Reduce(),
    _Einsum(),
)
