"""The spelled cores of LayerNormalization, RMSNormalization and InstanceNormalization."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import constant_array, dims, static_shape
from onnxopt.rewriting import Context, Rewriter, RewriteRule

from ..shared.spellings import in_the_way, made_by
from ..shared.targets import not_worth
from .normalization import (
    Centred,
    Deviation,
    centred,
    deviation,
    inverse_deviation,
    trailing_axes,
)

__all__ = ["FuseAffineLayerNorm", "FuseNormalization"]

#: InstanceNormalization has batch and channel axes, and is told from LayerNormalization over the
#: last axis by having more than one axis after those.
_LEAST_RANK_OF_IMAGES = 4


@dataclasses.dataclass(frozen=True)
class _Core:
    """A normalization of ``x`` spelled by ``nodes``, the anchor first.

    Attributes:
        x: What is normalized.
        centre: How its mean is subtracted; None for a root mean square.
        deviation: What it is divided by.
        nodes: All nodes.
    """

    x: ir.Value
    centre: Centred | None
    deviation: Deviation
    nodes: tuple[ir.Node, ...]

    def axes(self) -> int:
        """Number of last axes it is along; raises `Refuse`."""
        return trailing_axes(self.deviation.mean)

    def operator(self) -> str:
        """The operator that computes it; raises `Refuse`."""
        if self.centre is None:
            return "RMSNormalization"
        known = dims(self.x)
        images = known is not None and len(known) >= _LEAST_RANK_OF_IMAGES
        if images and known is not None and self.axes() == len(known) - 2:
            return "InstanceNormalization"
        return "LayerNormalization"

    def parameter_shape(self) -> tuple[int, ...] | None:
        """Shape of the operator's scale and bias, when it is known."""
        if self.operator() == "InstanceNormalization":
            known = dims(self.x)
            channels = None if known is None else known[1]
            return (channels,) if isinstance(channels, int) else None
        return normalized_shape(self.x, self.axes())


def normalized_shape(x: ir.Value, count: int) -> tuple[int, ...] | None:
    """The last ``count`` dimensions, when they are numbers and there is something to normalize."""
    known = dims(x)
    if known is None or count > len(known):
        return None
    last = tuple(dim for dim in known[len(known) - count :] if isinstance(dim, int) and dim > 0)
    return last if len(last) == count else None


class _FuseCore(RewriteRule[_Core]):
    """What the two spellings share: when one operator may stand for a core."""

    def check(self, match: _Core, context: Context) -> str | None:
        count = match.axes()
        if match.centre is not None and trailing_axes(match.centre.mean) != count:
            return "the two means are along different axes"
        reason = not_worth(match.operator(), match.x, context, match.nodes[0])
        if reason is not None:
            return reason
        if match.parameter_shape() is None:
            return "the shape of the scale is not known"
        return in_the_way(match.nodes, match.x)


class FuseNormalization(_FuseCore):
    """``d / sqrt(mean(d * d) + epsilon)`` with ``d = x - mean(x)``, or ``d = x``."""

    name = "fuse-normalization"
    anchors: ClassVar[tuple[str, ...]] = ("Div", "Mul")
    depth = 7

    def match(self, node: ir.Node, context: Context) -> _Core | None:
        if node.op_type == "Div":
            return _core(node, node.inputs[0], deviation(node.inputs[1]))
        first, second = node.inputs
        return _core(node, first, inverse_deviation(second)) or _core(
            node, second, inverse_deviation(first)
        )

    def rewrite(self, match: _Core, rewriter: Rewriter) -> None:
        operator, shape = match.operator(), match.parameter_shape()
        assert shape is not None
        old = match.nodes[0].outputs[0]
        scale = rewriter.initializer(_filled(match.x, shape, 1), "normalization_scale")
        attributes: dict[str, float | int] = {"epsilon": match.deviation.epsilon}
        inputs = [match.x, scale]
        if operator == "InstanceNormalization":
            bias = rewriter.initializer(_filled(match.x, shape, 0), "normalization_bias")
            inputs.append(bias)
        else:
            attributes["axis"] = -len(shape)
        rewriter.replace(old, rewriter.op(operator, inputs, attributes, like=old))


def _filled(x: ir.Value, shape: tuple[int, ...], number: int) -> np.ndarray:
    assert x.dtype is not None
    return np.full(shape, number, x.dtype.numpy())


def _core(node: ir.Node, upper: ir.Value | None, found: Deviation | None) -> _Core | None:
    """The core that divides ``upper`` by the deviation found."""
    if upper is None or found is None:
        return None
    centre = centred(upper)
    if centre is None:
        if found.source is not upper:
            return None
        return _Core(upper, None, found, (node, *found.nodes))
    squared = centred(found.source)  # exporters repeat the subtraction
    if squared is None or squared.x is not centre.x:
        return None
    pair = (centre.sub, centre.mean, squared.sub, squared.mean)
    if squared.mean is not centre.mean and not _same_axes(squared.mean, centre.mean):
        return None
    return _Core(centre.x, centre, found, (node, *found.nodes, *pair))


def _same_axes(first: ir.Node, second: ir.Node) -> bool:
    return trailing_axes(first) == trailing_axes(second)


@dataclasses.dataclass(frozen=True)
class _AffineCore(_Core):
    """A core with its scale and bias inside."""

    scale: ir.Value
    bias: ir.Value


class FuseAffineLayerNorm(_FuseCore):
    """``x * g + (beta - mean(x) * g)`` with ``g = gamma / sqrt(variance + epsilon)``."""

    name = "fuse-affine-layer-norm"
    anchors: ClassVar[tuple[str, ...]] = ("Add",)
    depth = 9

    def match(self, node: ir.Node, context: Context) -> _AffineCore | None:
        first, second = node.inputs
        return self._of(node, first, second) or self._of(node, second, first)

    @staticmethod
    def _of(node: ir.Node, scaled: ir.Value | None, rest: ir.Value | None) -> _AffineCore | None:
        product, offset = made_by(scaled, "Mul"), made_by(rest, "Sub")
        if product is None or offset is None:
            return None
        shift = made_by(offset.inputs[1], "Mul")
        bias = offset.inputs[0]
        if shift is None or bias is None:
            return None
        for x, gain in (product.inputs, product.inputs[::-1]):
            for mean_value, same in (shift.inputs, shift.inputs[::-1]):
                mean = made_by(mean_value, "ReduceMean")
                factor = made_by(gain, "Mul")
                if same is not gain or mean is None or factor is None or mean.inputs[0] is not x:
                    continue
                for inverse, scale in (factor.inputs, factor.inputs[::-1]):
                    found = inverse_deviation(inverse)
                    squared = None if found is None else centred(found.source)
                    if found is None or squared is None or x is None or scale is None:
                        continue
                    if squared.x is not x or squared.mean is not mean:
                        continue
                    nodes = (node, product, offset, shift, factor, *found.nodes, squared.sub, mean)
                    return _AffineCore(x, squared, found, nodes, scale, bias)
        return None

    def check(self, match: _Core, context: Context) -> str | None:
        assert isinstance(match, _AffineCore)
        if match.operator() != "LayerNormalization":
            return "the scale is not along the normalized axes"
        reason = super().check(match, context)
        if reason is not None:
            return reason
        for parameter in (match.scale, match.bias):
            if constant_array(parameter) is None and not parameter.is_graph_input():
                return "the scale or the bias is computed"
            if static_shape(parameter) != match.parameter_shape():
                return "the scale or the bias does not have the shape of the normalized axes"
        return None

    def rewrite(self, match: _Core, rewriter: Rewriter) -> None:
        assert isinstance(match, _AffineCore)
        old = match.nodes[0].outputs[0]
        attributes = {"epsilon": match.deviation.epsilon, "axis": -match.axes()}
        inputs = [match.x, match.scale, match.bias]
        rewriter.replace(old, rewriter.op("LayerNormalization", inputs, attributes, like=old))
