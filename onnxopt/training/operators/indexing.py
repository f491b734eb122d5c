"""Gather, scatter and kin. Negative indices count from the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnxopt.training.node_view import Builder, Call, NodeView
from onnxopt.training.numbers import Host, integers

__all__ = ["BUILDERS"]


def _from_start(indices: Tensor, size: Any) -> Tensor:
    """Indices as int64, counted from the start."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def _gather(node: NodeView) -> Call:
    axis = node.int_attribute("axis", 0)
    known = node.constant(1)
    if known is not None and known.ndim == 0:
        place = int(known)
        return Call(lambda x: x.select(axis, place), (node.tensor(0),))

    def gather(x: Tensor, indices: Tensor) -> Tensor:
        places = _from_start(indices, x.shape[axis])
        if x.ndim == 2 and axis == 0:
            return functional.embedding(places, x)
        at = axis % x.ndim
        taken = x.index_select(at, places.reshape(-1))
        return taken.reshape(*x.shape[:at], *indices.shape, *x.shape[at + 1 :])

    return Call(gather, (node.tensor(0), node.tensor(1)))


def _gather_elements(node: NodeView) -> Call:
    axis = node.int_attribute("axis", 0)

    def gather(x: Tensor, indices: Tensor) -> Tensor:
        return x.gather(axis, _from_start(indices, x.shape[axis]))

    return Call(gather, (node.tensor(0), node.tensor(1)))


def _gather_nd(node: NodeView) -> Call:
    batch = node.int_attribute("batch_dims", 0)

    def gather(x: Tensor, indices: Tensor) -> Tensor:
        places: list[Tensor] = []
        for axis in range(batch):
            steps = torch.arange(x.shape[axis], device=x.device)
            places.append(
                steps.reshape([-1 if at == axis else 1 for at in range(indices.ndim - 1)])
            )
        for at in range(indices.shape[-1]):
            places.append(_from_start(indices[..., at], x.shape[batch + at]))
        return x[tuple(places)]

    return Call(gather, (node.tensor(0), node.tensor(1)))


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter_elements(node: NodeView) -> Call:
    axis, reduction = node.int_attribute("axis", 0), node.string_attribute("reduction", "none")

    def scatter(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        places = _from_start(indices, x.shape[axis])
        if reduction == "none":
            return x.scatter(axis, places, updates)
        return x.scatter_reduce(axis, places, updates, _REDUCTIONS[reduction])

    return Call(scatter, (node.tensor(0), node.tensor(1), node.tensor(2)))


def _scatter_nd(node: NodeView) -> Call:
    """Writes slices; positions are turned into rows of the tensor seen as a matrix."""
    reduction = node.string_attribute("reduction", "none")

    def scatter(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        depth = indices.shape[-1]
        row = torch.zeros_like(indices[..., 0], dtype=torch.int64)
        rows = 1
        for at in range(depth):
            row = row * x.shape[at] + _from_start(indices[..., at], x.shape[at])
            rows = rows * x.shape[at]
        matrix = x.reshape(rows, -1)
        places = row.reshape(-1, 1).expand(-1, matrix.shape[1])
        values = updates.reshape(places.shape)
        if reduction == "none":
            return matrix.scatter(0, places, values).reshape(x.shape)
        name = _REDUCTIONS[reduction]
        return matrix.scatter_reduce(0, places, values, name).reshape(x.shape)

    return Call(scatter, (node.tensor(0), node.tensor(1), node.tensor(2)))


def _one_hot(node: NodeView) -> Call:
    axis = node.int_attribute("axis", -1)

    def one_hot(indices: Tensor, depth: Host, values: Tensor) -> Tensor:
        (count,) = integers(depth)
        count = int(count) if isinstance(count, float) else count
        places = indices.long()
        places = torch.where(places < 0, places + count, places)
        at = axis if axis >= 0 else axis + indices.ndim + 1
        levels = torch.arange(count, device=indices.device)
        levels = levels.reshape([-1 if place == at else 1 for place in range(indices.ndim + 1)])
        return torch.where(places.unsqueeze(at) == levels, values[1], values[0])

    return Call(one_hot, (node.tensor(0), node.host(1), node.tensor(2)))


def _non_zero(node: NodeView) -> Call:
    return Call(lambda x: torch.nonzero(x).t(), (node.tensor(0),))


def _compress(node: NodeView) -> Call:
    axis = node.int_attribute("axis", 0) if node.has_attribute("axis") else None

    def compress(x: Tensor, condition: Tensor) -> Tensor:
        x, along = (x.reshape(-1), 0) if axis is None else (x, axis)
        return x.index_select(along, torch.nonzero(condition).reshape(-1))

    return Call(compress, (node.tensor(0), node.tensor(1)))


BUILDERS: dict[str, Builder] = {
    "Compress": _compress,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
}
