"""Let convolutions and poolings pad for themselves, and merge Pad after Pad.

- ``pad-into-conv``: Pad with zeros along spatial axes, then Conv: the pads add up, since Conv pads
  with zeros.
- ``pad-into-average-pool``: the same when the average counts padding, or counts nothing else than
  the window because it pads nothing itself; it then has to count padding.
- ``pad-into-max-pool``: MaxPool pads with minus infinity. So does a Pad whose value is that, or is
  no larger than anything it pads: zeros after Relu, for one. Zeros in general are not.
- ``merge-pads``: Pad after Pad with the same constant adds up.

Exact. Left alone: negative pads (they crop), other modes than ``constant``, pads or values that are
only known when the model runs, automatic padding that depends on the size, ``ceil_mode`` (the last
window may start inside what was padded), pads as large as the window (runtimes refuse them), and
MaxPool whose positions are read, since they count from the padded tensor's start.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis import values
from onnxopt.analysis.attributes import (
    clip_bounds,
    constant_input,
    float_attribute,
    int_attribute,
    ints_attribute,
    string_attribute,
)
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Context, Refuse, RewritePass, Rewriter, RewriteRule

__all__ = ["FusePad"]

#: Operators whose result is never below zero.
_NOT_NEGATIVE = frozenset(
    {"Relu", "Abs", "Sigmoid", "HardSigmoid", "Softplus", "Exp", "Sqrt", "Softmax"}
)


@dataclasses.dataclass(frozen=True)
class _Padding:
    """What a Pad node adds before and after each axis, and with which value."""

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    value: float

    def spatial(self) -> tuple[int, ...]:
        """Begins and ends without those of batch and channels, as convolutions write them."""
        if any(self.begins[:2]) or any(self.ends[:2]):
            raise Refuse("it pads batch or channels")
        return (*self.begins[2:], *self.ends[2:])


def _padding_node(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Pad" or not is_standard(node):
        return None
    return node


def _read(node: ir.Node, rank: int | None, context: Context) -> _Padding:
    """The padding of a Pad node on a tensor of this rank.

    Raises:
        Refuse: When it does anything but add a constant around the tensor.
    """
    if string_attribute(node, "mode", "constant") != "constant":
        raise Refuse("it does not pad with a constant")
    if context.opset(node) < 11:
        pads, axes = ints_attribute(node, "pads"), None
        value: float | int | None = float_attribute(node, "value", 0.0)
    else:
        pads = constant_input(node, 1, "the amount of padding")
        axes = constant_input(node, 3, "axes")
        value = 0.0
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            value = values.constant_scalar(node.inputs[2])
    if pads is None or value is None:
        raise Refuse("amount or value of the padding are not constant")
    half = len(pads) // 2
    if axes is None:
        if rank is not None and half != rank:
            raise Refuse("the padding does not fit the rank")
        begins, ends = list(pads[:half]), list(pads[half:])
    else:
        if rank is None:
            raise Refuse("the rank is unknown")
        begins, ends = [0] * rank, [0] * rank
        for place, axis in enumerate(axes):
            begins[axis], ends[axis] = pads[place], pads[half + place]
    if min(*begins, *ends, 0) < 0:
        raise Refuse("it crops")
    return _Padding(tuple(begins), tuple(ends), float(value))


def _own_pads(node: ir.Node, spatial_rank: int) -> tuple[int, ...]:
    """The pads a convolution or pooling has itself.

    Raises:
        Refuse: When they depend on the size of the input.
    """
    mode = string_attribute(node, "auto_pad", "NOTSET")
    if mode not in ("NOTSET", "", "VALID"):
        raise Refuse("the amount of padding depends on the size")
    pads = ints_attribute(node, "pads") if mode != "VALID" else None
    return pads if pads is not None else (0,) * (2 * spatial_rank)


@dataclasses.dataclass
class _IntoWindow:
    pad: ir.Node
    node: ir.Node
    pads: tuple[int, ...] = ()


class _PadIntoWindow(RewriteRule[_IntoWindow]):
    """What the rules for Conv and the poolings share: they add the pads up."""

    def match(self, node: ir.Node, context: Context) -> _IntoWindow | None:
        pad = _padding_node(node.inputs[0])
        return None if pad is None else _IntoWindow(pad, node)

    def check(self, match: _IntoWindow, context: Context) -> str | None:
        node, padded = match.node, match.pad.outputs[0]
        if padded.is_graph_output() or any(
            reader.op_type != node.op_type or index != 0 for reader, index in padded.uses()
        ):
            return "something else reads the padded tensor"
        rank = self.spatial_rank(node)
        padding = _read(match.pad, rank + 2, context)
        own = _own_pads(node, rank)
        if len(own) != 2 * rank:
            return "the pads do not fit the rank"
        match.pads = tuple(map(sum, zip(padding.spatial(), own, strict=True)))
        return self.check_window(match, padding, own)

    def rewrite(self, match: _IntoWindow, rewriter: Rewriter) -> None:
        rewriter.set_attribute(match.node, "auto_pad", None)
        rewriter.set_attribute(match.node, "pads", match.pads)
        rewriter.replace_input(match.node, 0, match.pad.inputs[0])

    def spatial_rank(self, node: ir.Node) -> int:
        """Number of spatial axes."""
        kernel = ints_attribute(node, "kernel_shape")
        if kernel is None:
            raise Refuse("the rank is unknown")
        return len(kernel)

    def check_window(
        self, match: _IntoWindow, padding: _Padding, own: tuple[int, ...]
    ) -> str | None:
        """Why the padding means something else to this operator, or None."""
        raise NotImplementedError


class _PadIntoConv(_PadIntoWindow):
    """Conv pads with zeros."""

    name = "pad-into-conv"
    anchors: ClassVar[tuple[str, ...]] = ("Conv",)

    def spatial_rank(self, node: ir.Node) -> int:
        rank = values.rank(node.inputs[1]) or values.rank(node.inputs[0])
        return rank - 2 if rank is not None else super().spatial_rank(node)

    def check_window(
        self, match: _IntoWindow, padding: _Padding, own: tuple[int, ...]
    ) -> str | None:
        return None if padding.value == 0 else "it does not pad with zeros"


class _PadIntoPool(_PadIntoWindow):
    """What the poolings share."""

    def check_window(
        self, match: _IntoWindow, padding: _Padding, own: tuple[int, ...]
    ) -> str | None:
        node = match.node
        kernel = ints_attribute(node, "kernel_shape") or ()
        if int_attribute(node, "ceil_mode", 0):
            return "the last window may start in the padding"
        if any(size != 1 for size in ints_attribute(node, "dilations") or ()):
            return "a dilated window may lie in the padding"
        if any(pad >= size for pad, size in zip(match.pads, (*kernel, *kernel), strict=True)):
            return "the padding is as large as the window"
        return self.check_pool(node, match.pad, padding, own)

    def check_pool(
        self, node: ir.Node, pad: ir.Node, padding: _Padding, own: tuple[int, ...]
    ) -> str | None:
        """Why the padding means something else to this pooling, or None."""
        raise NotImplementedError


class _PadIntoAveragePool(_PadIntoPool):
    """The average has to count the zeros."""

    name = "pad-into-average-pool"
    anchors: ClassVar[tuple[str, ...]] = ("AveragePool",)

    def check_pool(
        self, node: ir.Node, pad: ir.Node, padding: _Padding, own: tuple[int, ...]
    ) -> str | None:
        if padding.value != 0:
            return "it does not pad with zeros"
        if any(own) and not int_attribute(node, "count_include_pad", 0):
            return "the average does not count its own padding"
        return None

    def rewrite(self, match: _IntoWindow, rewriter: Rewriter) -> None:
        super().rewrite(match, rewriter)
        rewriter.set_attribute(match.node, "count_include_pad", 1)


class _PadIntoMaxPool(_PadIntoPool):
    """The maximum must not see the padding."""

    name = "pad-into-max-pool"
    anchors: ClassVar[tuple[str, ...]] = ("MaxPool",)

    def check_pool(
        self, node: ir.Node, pad: ir.Node, padding: _Padding, own: tuple[int, ...]
    ) -> str | None:
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            return "the positions of the maxima are read"
        source = pad.inputs[0]
        dtype = source.dtype if source is not None else None
        if dtype is None or not dtype.is_floating_point():
            return "the element type is not known to be a float"
        if padding.value <= max(_lowest(dtype), _lower_bound(source)):
            return None
        return "the padding may be larger than what it pads"


def _lowest(dtype: ir.DataType) -> float:
    """The lowest finite number, which some exporters pad with for minus infinity."""
    known: dict[ir.DataType, float] = {
        ir.DataType.FLOAT16: float(np.finfo(np.float16).min),
        ir.DataType.FLOAT: float(np.finfo(np.float32).min),
        ir.DataType.DOUBLE: float(np.finfo(np.float64).min),
    }
    return known.get(dtype, -np.inf)


def _lower_bound(value: ir.Value | None) -> float:
    """A number that nothing in the tensor is below; minus infinity when none is known."""
    node = value.producer() if value is not None else None
    if node is None or not is_standard(node):
        return -np.inf
    if node.op_type in _NOT_NEGATIVE:
        return 0.0
    if node.op_type == "Clip":
        lower, upper = clip_bounds(node)
        if lower is None:
            return -np.inf
        return lower if upper is None else min(lower, upper)  # crossed bounds give the upper one
    return -np.inf


@dataclasses.dataclass
class _TwoPads:
    first: ir.Node
    second: ir.Node
    padding: _Padding | None = None


class _MergePads(RewriteRule[_TwoPads]):
    """Pad after Pad with the same constant."""

    name = "merge-pads"
    anchors: ClassVar[tuple[str, ...]] = ("Pad",)

    def match(self, node: ir.Node, context: Context) -> _TwoPads | None:
        first = _padding_node(node.inputs[0])
        return None if first is None else _TwoPads(first, node)

    def check(self, match: _TwoPads, context: Context) -> str | None:
        if not values.has_one_use(match.first.outputs[0]):
            return "something else reads the padded tensor"
        rank = values.rank(match.first.inputs[0])
        first, second = (_read(node, rank, context) for node in (match.first, match.second))
        if first.value != second.value:
            return "the two pad with other values"
        match.padding = _Padding(
            tuple(map(sum, zip(first.begins, second.begins, strict=True))),
            tuple(map(sum, zip(first.ends, second.ends, strict=True))),
            second.value,
        )
        return None

    def rewrite(self, match: _TwoPads, rewriter: Rewriter) -> None:
        assert match.padding is not None
        pads = (*match.padding.begins, *match.padding.ends)
        source = match.first.inputs[0]
        if rewriter.context.opset(match.second) < 11:
            rewriter.set_attribute(match.second, "pads", pads)
            rewriter.replace_input(match.second, 0, source)
            return
        name = f"{match.second.outputs[0].name}_pads"
        amount = rewriter.initializer(np.array(pads, dtype=np.int64), name)
        rewriter.set_inputs(match.second, [source, amount, *match.second.inputs[2:3]])


class FusePad(RewritePass):
    """Let convolutions and poolings pad for themselves, and merge Pad after Pad."""

    name = "fuse-pad"

    def rules(self) -> list[RewriteRule[Any]]:
        """The rules, by operator."""
        return [_PadIntoConv(), _PadIntoAveragePool(), _PadIntoMaxPool(), _MergePads()]
