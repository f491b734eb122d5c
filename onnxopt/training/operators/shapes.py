"""Sizes, and tensors made from sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxopt.training.node_view import Builder, Call, NodeView
from onnxopt.training.numbers import Host, as_host, integers, tensor_of, torch_type

__all__ = ["BUILDERS", "SIZES"]


def _shape(node: NodeView) -> Call:
    start = node.int_attribute("start", 0)
    end = node.int_attribute("end", 0) if node.has_attribute("end") else None
    part = slice(start, end)
    return Call(lambda x: as_host(list(x.shape[part])), (node.tensor(0),))


def _size(node: NodeView) -> Call:
    return Call(lambda x: as_host(math.prod(x.shape)), (node.tensor(0),))


def _constant_of_shape(node: NodeView) -> Call:
    value = node.tensor_attribute("value")
    filled = tensor_of(np.zeros(1, np.float32) if value is None else value).reshape(())

    def constant_of_shape(sizes: Host, device: Any) -> Tensor:
        return torch.full(integers(sizes), filled.item(), dtype=filled.dtype, device=device)

    return Call(constant_of_shape, (node.host(0), node.device))


def _range(node: NodeView) -> Call:
    dtype = node.node.outputs[0].dtype or getattr(node.input(0), "dtype", None)
    kind = None if dtype is None else torch_type(dtype)

    def arange(start: Host, limit: Host, delta: Host, device: Any) -> Tensor:
        (first,), (end,), (step,) = integers(start), integers(limit), integers(delta)
        return torch.arange(first, end, step, dtype=kind, device=device)

    return Call(arange, (node.host(0), node.host(1), node.host(2), node.device))


def _eye_like(node: NodeView) -> Call:
    diagonal = node.int_attribute("k", 0)
    wanted = node.type_attribute("dtype", ir.DataType.UNDEFINED)
    dtype = None if wanted == ir.DataType.UNDEFINED else torch_type(wanted)

    def eye_like(x: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0], device=x.device).reshape(-1, 1)
        columns = torch.arange(x.shape[1], device=x.device)
        return (columns - rows == diagonal).to(dtype or x.dtype)

    return Call(eye_like, (node.tensor(0),))


#: These read a tensor and give a small array.
SIZES: dict[str, Builder] = {"Shape": _shape, "Size": _size}

BUILDERS: dict[str, Builder] = {
    "ConstantOfShape": _constant_of_shape,
    "EyeLike": _eye_like,
    "Range": _range,
}
