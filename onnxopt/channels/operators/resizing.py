"""Operators that change height and width: Pad, Resize."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxopt.analysis.attributes import (
    constant_input,
    float_attribute,
    int_attribute,
    ints_attribute,
    string_attribute,
)
from onnxopt.analysis.values import constant_array, constant_scalar
from onnxopt.channels.followers import AxisRef, Follower
from onnxopt.channels.known import Known, Transfer, nothing_known, unchanged
from onnxopt.channels.operators.sizes import size_input
from onnxopt.channels.tracer import Handler, Tracer, axes_with_channels
from onnxopt.rewriting import Refuse

__all__ = ["HANDLERS"]


def _pad(node: ir.Node, tracer: Tracer) -> None:
    source = node.inputs[0]
    ids = tracer.of(source)
    if source is None or ids is None:
        return
    pads = ints_attribute(node, "pads") or constant_input(node, 1, "the padding")
    if pads is None:
        raise Refuse("the padding is not known")
    given = constant_input(node, 3, "the padded axes")
    along = range(ids.ndim) if given is None else [axis % ids.ndim for axis in given]
    if len(pads) != 2 * len(along):
        raise Refuse("the padding is not known")
    padded = {axis for axis, pad in zip([*along, *along], pads, strict=True) if pad != 0}
    if padded.intersection(axes_with_channels(ids)):
        raise Refuse("channels are padded")
    tracer.emit(node.outputs[0], ids, [source], _pad_transfer(node, bool(padded)))


def _pad_transfer(node: ir.Node, pads: bool) -> Transfer:
    """A constant stays one if what is put around it is the same number."""
    if not pads or string_attribute(node, "mode", "constant") != "constant":
        return unchanged
    filled: float | None = float_attribute(node, "value", 0.0)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        filled = constant_scalar(node.inputs[2])

    def transfer(known: Sequence[Known | None]) -> Known | None:
        given = known[0]
        if given is None or filled is None:
            return None
        return Known(given.mask & (given.values == filled), given.values)

    return transfer


def _resize(node: ir.Node, tracer: Tracer) -> None:
    source, output = node.inputs[0], node.outputs[0]
    ids = tracer.of(source)
    if source is None or ids is None:
        return
    old = node.op_type == "Upsample" or tracer.opset < 11
    sizes = 3 if not old and len(node.inputs) > 3 and node.inputs[3] is not None else None
    along = ints_attribute(node, "axes") or tuple(range(ids.ndim))
    places = {axis % ids.ndim: place for place, axis in enumerate(along)}
    followers: list[Follower] = []
    for axis in axes_with_channels(ids):
        if axis not in places:
            continue
        if sizes is None:
            if _scale(node, places[axis], old) != 1.0:
                raise Refuse("channels are resized")
        else:
            if tracer.sizes(output)[axis] != ids.shape[axis]:
                raise Refuse("channels are resized")
            if string_attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
                raise Refuse("a size depends on the others")
            followers.extend(size_input(node, sizes, places[axis], AxisRef(output, axis)))
    tracer.emit(output, ids, [source], _resize_transfer(node), followers)


def _scale(node: ir.Node, place: int, old: bool) -> float | None:
    attribute = node.attributes.get("scales")
    if attribute is not None:
        return float(attribute.as_floats()[place])
    index = 1 if old else 2
    array = constant_array(node.inputs[index]) if len(node.inputs) > index else None
    return None if array is None or array.size <= place else float(array.reshape(-1)[place])


def _resize_transfer(node: ir.Node) -> Transfer:
    """Weights of nearest and linear interpolation add up to 1; those of cubic need not at edges."""
    plain = (
        string_attribute(node, "mode", "nearest") in ("nearest", "linear", "bilinear")
        and string_attribute(node, "coordinate_transformation_mode", "half_pixel")
        != "tf_crop_and_resize"
        and not int_attribute(node, "antialias", 0)
    )
    return unchanged if plain else nothing_known


HANDLERS: dict[str, Handler] = {"Pad": _pad, "Resize": _resize, "Upsample": _resize}
