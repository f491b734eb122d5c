"""Feeds made up from the signature of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import constant
from onnxopt.data.feed import Feed
from onnxopt.data.request import FeedRequest
from onnxopt.data.sizes import Plan, fixed_symbols, make_shape
from onnxopt.errors import FeedError

__all__ = ["index_limit", "make_feed"]

#: Walk so many steps from an integer input to find the table that it indexes.
_INDEX_SEARCH_DEPTH = 6


def make_feed(
    inputs: Sequence[ir.Value],
    request: FeedRequest,
    limits: Mapping[str, int | None],
    plan: Plan,
    seed: int,
) -> Feed:
    """Make up one feed.

    Args:
        inputs: The inputs to feed.
        request: What the user fixed.
        limits: By input name, an upper limit of its integers (see `index_limit`).
        plan: Sizes of the open dimensions.
        seed: Of the random numbers; odd ones give floats like pixels (0 to 1), even ones floats
            like normalized features.

    Raises:
        FeedError: When an input is of a kind that cannot be made up.
    """
    symbols = fixed_symbols(inputs, request)
    generator = np.random.default_rng(seed)
    feed: Feed = {}
    for value in inputs:
        name = value.name or ""
        if name in request.values:
            feed[name] = request.values[name]
            continue
        shape = make_shape(value, request.shapes.get(name), symbols, plan)
        feed[name] = _make_value(value, shape, limits[name], generator, seed)
    return feed


def _make_value(
    value: ir.Value,
    shape: tuple[int, ...],
    limit: int | None,
    generator: np.random.Generator,
    seed: int,
) -> Any:
    if isinstance(value.type, ir.SequenceType):
        element = ir.Value(name=value.name, type=value.type.elem_type, shape=value.shape)
        return [_make_value(element, shape, limit, generator, seed) for _ in range(2)]
    dtype = value.dtype
    if dtype == ir.DataType.STRING:
        return generator.choice(np.array(["alpha", "beta", "gamma"], dtype=object), size=shape)
    if dtype is None or dtype == ir.DataType.UNDEFINED or isinstance(value.type, ir.OptionalType):
        raise FeedError(
            f"input '{value.name}' is of a kind that cannot be made up; give it with --data"
        )
    if dtype == ir.DataType.BOOL:
        return generator.random(shape) < 0.5
    numpy_type = dtype.numpy()
    if dtype.is_integer():
        if "mask" in (value.name or "").lower():
            return np.ones(shape, dtype=numpy_type)
        top = min(limit or 2, 2 ** min(dtype.bitwidth - 1, 31) - 1)
        return generator.integers(0, max(top, 1), size=shape).astype(numpy_type)
    numbers = generator.random(shape) if seed % 2 else generator.standard_normal(shape)
    return np.asarray(numbers).astype(numpy_type)


def index_limit(value: ir.Value) -> int | None:
    """Number of rows of the smallest table that the integers of this input select from."""
    if value.dtype is None or not value.dtype.is_integer():
        return None
    limits: list[int] = []
    frontier, seen = [value], {value}
    for _ in range(_INDEX_SEARCH_DEPTH):
        following: list[ir.Value] = []
        for current in frontier:
            for node, index in current.uses():
                if node.op_type in ("Gather", "GatherElements") and index == 1:
                    table = constant(node.inputs[0])
                    axis = node.attributes.get("axis")
                    if table is not None and len(table.shape):
                        at = 0 if axis is None or axis.is_ref() else axis.as_int()
                        limits.append(int(table.shape.numpy()[at]))
                elif node.op_type in ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze"):
                    following.extend(each for each in node.outputs if each not in seen)
                    seen.update(node.outputs)
        frontier = following
    return min(limits, default=None)
