"""Penalties that draw weights to zero before they are pruned (sparse training).

Each is a function without arguments, to be added to the loss of every step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxopt.channels import trace
from onnxopt.errors import OptionError
from onnxopt.pass_manager import PassManager, parse_pipeline

__all__ = ["ChannelSlices", "Penalty", "channel_slices", "group_lasso", "norm_penalty"]

Penalty = Callable[[], Tensor]


@dataclasses.dataclass(frozen=True)
class ChannelSlices:
    """Where the numbers of sets of channels lie that can only be removed together.

    Attributes:
        weight: Name of a weight.
        axis: Its axis of output channels.
        groups: The set that each channel belongs to.
    """

    weight: str
    axis: int
    groups: np.ndarray[tuple[int], np.dtype[np.int64]]


def norm_penalty(
    weights: Mapping[str, Tensor], strength: float, norm: Literal["l1", "l2"] = "l1"
) -> Penalty:
    """The sum of magnitudes or of half the squares.

    ``strength * sum |w|`` (Tibshirani, 1996, "the lasso") or ``strength * sum w^2 / 2``.
    """

    def penalty() -> Tensor:
        parts = [
            each.abs().sum() if norm == "l1" else each.square().sum() / 2
            for each in weights.values()
        ]
        return strength * torch.stack(parts).sum()

    return penalty


def group_lasso(
    weights: Mapping[str, Tensor], slices: list[ChannelSlices], strength: float
) -> Penalty:
    """The sum of the lengths of groups of channels.

    ``strength * sum_g sqrt(n_g) |w_g|_2`` with n_g numbers in group g (Yuan and Lin, 2006, "Model
    selection and estimation in regression with grouped variables"; for channels: Wen et al., 2016,
    arXiv:1608.03665). A group goes to zero as a whole, over all layers whose channels depend on one
    another, so that `prune-channels` and `fold-pruned-channels` can take it out.

    Args:
        weights: Weights by name.
        slices: What `channel_slices` found.
        strength: Factor.

    Raises:
        OptionError: When no weight makes channels that could be removed.
    """
    present = [each for each in slices if each.weight in weights]
    if not present:
        raise OptionError("no weight makes channels that could be removed")
    count = 1 + max(int(each.groups.max()) for each in present)
    indices = [torch.from_numpy(each.groups) for each in present]
    sizes = torch.zeros(count)
    for each, index in zip(present, indices, strict=True):
        weight = weights[each.weight]
        numbers = float(weight.numel() // weight.shape[each.axis])
        sizes.index_add_(0, index, torch.full((len(index),), numbers))
    roots = sizes.sqrt()

    def penalty() -> Tensor:
        squares = torch.zeros(count)
        for each, index in zip(present, indices, strict=True):
            weight = weights[each.weight].movedim(each.axis, 0)
            squares = squares.index_add(0, index, weight.flatten(1).square().sum(dim=1))
        # The root has no slope at zero; a group that is there already is left alone.
        lengths = squares.clamp_min(1e-16).sqrt()
        return strength * (roots * lengths).sum()

    return penalty


def channel_slices(model: ir.Model) -> list[ChannelSlices]:
    """The output channels of every layer whose channels may be removed, by weight.

    Args:
        model: The model; shapes are inferred, else it is not changed.
    """
    PassManager(parse_pipeline("infer-shapes")).run(model)
    traced = trace(model.graph, model.opset_imports.get("", 1), model.ir_version)
    pinned = np.array([pin is not None for pin in traced.pins], np.bool_)
    found: list[ChannelSlices] = []
    for layer in traced.layers:
        weight = layer.node.inputs[1]
        if layer.outputs is None or weight is None or weight.name is None or layer.groups != 1:
            continue
        groups = np.asarray(layer.outputs).reshape(-1).astype(np.int64)
        if pinned[groups].any():
            continue
        shape = weight.shape
        if shape is None:
            continue
        axes = [axis for axis, size in enumerate(shape) if size == len(groups)]
        preferred = {"Conv": 0, "ConvTranspose": 1}.get(layer.node.op_type)
        if preferred is None:
            transposed = layer.node.attributes.get("transB")
            preferred = 0 if transposed is not None and transposed.as_int() else 1
        if preferred in axes:
            found.append(ChannelSlices(weight.name, preferred, groups))
    return found
