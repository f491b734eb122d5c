"""Resize and Upsample: each axis is resized by itself, as a weighted sum of a few elements."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnxopt.training.node_view import Builder, Call, NodeView
from onnxopt.training.numbers import Host, integers

__all__ = ["BUILDERS"]


@dataclasses.dataclass(frozen=True)
class _Mode:
    """How elements are chosen and weighed.

    Attributes:
        mode: nearest, linear or cubic.
        coordinates: How a place in the output becomes one in the input.
        nearest: How that is rounded.
        cubic: Coefficient of the cubic kernel.
        exclude_outside: Whether taps outside the input weigh nothing and the others add up to 1.
        extrapolation: What is outside the input, with tf_crop_and_resize.
    """

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    extrapolation: float


def _resize(node: NodeView) -> Call:
    node.require(not node.int_attribute("antialias", 0), "Resize with antialiasing")
    old = node.opset < 11 or node.node.op_type == "Upsample"
    mode = _Mode(
        node.string_attribute("mode", "nearest").replace("bilinear", "linear"),
        "asymmetric"
        if old
        else node.string_attribute("coordinate_transformation_mode", "half_pixel"),
        "floor" if old else node.string_attribute("nearest_mode", "round_prefer_floor"),
        node.float_attribute("cubic_coeff_a", -0.75),
        bool(node.int_attribute("exclude_outside", 0)),
        node.float_attribute("extrapolation_value", 0.0),
    )
    node.require(mode.mode in ("nearest", "linear", "cubic"), f"Resize by {mode.mode}")
    policy = node.string_attribute("keep_aspect_ratio_policy", "stretch")
    axes = node.ints_attribute("axes")
    fixed = node.floats_attribute("scales")
    crop = mode.coordinates == "tf_crop_and_resize"

    def resize(x: Tensor, roi: Host | None, factors: Any, sizes: Any) -> Tensor:
        along = [axis % x.ndim for axis in (axes if axes is not None else range(x.ndim))]
        if sizes is not None and len(sizes):
            wanted, scales = _sizes(x, along, sizes, policy)
        else:
            scales = list(factors)
            wanted = [
                math.floor(x.shape[axis] * scale) for axis, scale in zip(along, scales, strict=True)
            ]
        regions = _regions(roi, len(along)) if crop else [(0.0, 1.0)] * len(along)
        if not crop:
            quick = _quickly(x, mode, along, wanted, scales, by_size=bool(sizes))
            if quick is not None:
                return quick
        for axis, size, scale, region in zip(along, wanted, scales, regions, strict=True):
            if crop or not _is_same(x, axis, size, scale):
                x = _along(x, axis, size, scale, region, mode)
        return x

    if old:
        if fixed is not None:
            return Call(lambda x: resize(x, None, fixed, None), (node.tensor(0),))
        return Call(
            lambda x, scales: resize(x, None, integers(scales), None),
            (node.tensor(0), node.host(1)),
        )

    def computed(x: Tensor, roi: Host | None, scales: Host | None, sizes: Host | None) -> Tensor:
        return resize(
            x,
            roi,
            None if scales is None else integers(scales),
            None if sizes is None else integers(sizes),
        )

    return Call(computed, (node.tensor(0), node.host(1), node.host(2), node.host(3)))


def _sizes(
    x: Tensor, along: Sequence[int], sizes: Sequence[Any], policy: str
) -> tuple[list[Any], list[Any]]:
    """Sizes by axis and the scales that go with them."""
    scales = [size / x.shape[axis] for axis, size in zip(along, sizes, strict=True)]
    if policy == "stretch":
        return list(sizes), scales
    scale = min(scales) if policy == "not_larger" else max(scales)
    wanted = [math.floor(x.shape[axis] * scale + 0.5) for axis in along]
    return wanted, [scale] * len(along)


def _regions(roi: Host | None, count: int) -> list[tuple[float, float]]:
    assert roi is not None
    numbers = integers(roi)
    return list(zip(numbers[:count], numbers[count:], strict=True))


def _is_same(x: Tensor, axis: int, size: Any, scale: Any) -> bool:
    return bool(scale == 1) and bool(size == x.shape[axis])


def _quickly(
    x: Tensor,
    mode: _Mode,
    along: Sequence[int],
    wanted: Sequence[Any],
    scales: Sequence[Any],
    by_size: bool,
) -> Tensor | None:
    """What PyTorch resizes in one go: the last two axes of a batch of images."""
    if x.ndim != 4 or mode.exclude_outside or not x.is_floating_point():
        return None
    places = dict(zip(along, zip(wanted, scales, strict=True), strict=True))
    if any(not _is_same(x, axis, *places[axis]) for axis in (0, 1) if axis in places):
        return None
    if 2 not in places or 3 not in places:
        return None
    sizes = [places[axis][0] for axis in (2, 3)]
    settings = (mode.mode, mode.coordinates)
    factors = None if by_size else [float(places[axis][1]) for axis in (2, 3)]
    target: dict[str, Any] = {"scale_factor": factors} if factors else {"size": sizes}
    if settings == ("nearest", "asymmetric") and mode.nearest == "floor":
        return functional.interpolate(x, mode="nearest", **target)
    name = {"linear": "bilinear", "cubic": "bicubic"}.get(mode.mode)
    if name is None or (name == "bicubic" and mode.cubic != -0.75):
        return None
    if mode.coordinates == "half_pixel" or (
        mode.coordinates == "pytorch_half_pixel" and all(size > 1 for size in sizes)
    ):
        return functional.interpolate(x, mode=name, align_corners=False, **target)
    if mode.coordinates == "align_corners" and all(size > 1 for size in sizes):
        return functional.interpolate(x, size=sizes, mode=name, align_corners=True)
    return None


def _along(
    x: Tensor, axis: int, size: Any, scale: Any, region: tuple[float, float], mode: _Mode
) -> Tensor:
    """Resize along one axis."""
    length = x.shape[axis]
    real = x.dtype if x.is_floating_point() else torch.float32
    places = _coordinates(size, scale, length, region, mode.coordinates, x.device)
    taps, shares = _taps(places, length, mode)
    result: Tensor | None = None
    shape = [-1 if at == axis else 1 for at in range(x.ndim)]
    for tap, share in zip(taps, shares, strict=True):
        taken = x.index_select(axis, tap.clamp(0, length - 1))
        if share is not None:
            taken = taken * share.to(real).reshape(shape)
        result = taken if result is None else result + taken
    assert result is not None
    if mode.coordinates == "tf_crop_and_resize":
        outside = ((places < 0) | (places > length - 1)).reshape(shape)
        result = torch.where(outside, torch.full_like(result, mode.extrapolation), result)
    return result.to(x.dtype)


def _coordinates(
    size: Any, scale: Any, length: Any, region: tuple[float, float], mode: str, device: Any
) -> Tensor:
    """Places in the input of the elements of the output, along one axis (ONNX, Resize)."""
    at = torch.arange(size, device=device, dtype=torch.float32)
    match mode:
        case "half_pixel":
            return (at + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (at + 0.5) / scale - 0.5 if size > 1 else torch.zeros_like(at)
        case "half_pixel_symmetric":
            adjustment = size / (length * scale)
            centre = length / 2
            return centre * (1 - adjustment) + (at + 0.5) / scale - 0.5
        case "align_corners":
            return at * ((length - 1) / (size - 1)) if size > 1 else torch.zeros_like(at)
        case "asymmetric":
            return at / scale
        case "tf_crop_and_resize":
            start, end = region
            if size > 1:
                return start * (length - 1) + at * ((end - start) * (length - 1) / (size - 1))
            return torch.full_like(at, 0.5 * (start + end) * (length - 1))
    raise AssertionError(mode)


def _taps(places: Tensor, length: Any, mode: _Mode) -> tuple[list[Tensor], list[Tensor | None]]:
    """Which elements are summed, and with which weights (None: 1)."""
    if mode.mode == "nearest":
        return [_nearest(places, mode.nearest)], [None]
    first = torch.floor(places)
    rest = places - first
    start = first.long()
    if mode.mode == "linear":
        taps = [start, start + 1]
        shares = [1 - rest, rest]
    else:
        taps = [start - 1, start, start + 1, start + 2]
        shares = [_cubic(rest + 1 - tap, mode.cubic) for tap in range(4)]
    if mode.exclude_outside:
        inside = [(tap >= 0) & (tap < length) for tap in taps]
        shares = [share * one for share, one in zip(shares, inside, strict=True)]
        total = torch.stack(shares).sum(0)
        shares = [share / total for share in shares]
    return taps, list(shares)


def _nearest(places: Tensor, mode: str) -> Tensor:
    match mode:
        case "floor":
            return torch.floor(places).long()
        case "ceil":
            return torch.ceil(places).long()
        case "round_prefer_ceil":
            return torch.floor(places + 0.5).long()
    return torch.ceil(places - 0.5).long()


def _cubic(distance: Tensor, a: float) -> Tensor:
    """The kernel of cubic convolution (Keys 1981), |distance| below 2."""
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, far)


BUILDERS: dict[str, Builder] = {"Resize": _resize, "Upsample": _resize}
