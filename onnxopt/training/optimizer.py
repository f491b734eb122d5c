"""AdamW with a rate for each tensor that fits the size of its numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["adam_w", "set_rate"]

#: A matrix of smaller numbers is treated as if they were so large; one of zeros could never leave.
_SMALLEST_WEIGHT = 1e-3
#: Biases, scales and shifts may be zero at the start and still have somewhere to go.
_SMALLEST_VECTOR = 0.05
#: Scales of quantizers move so much less than weights.
_SLOWNESS = 0.1
#: Sizes are rounded to powers of this, so that a model with hundreds of tensors has few groups.
_ROUNDING = math.sqrt(2.0)


def adam_w(
    parameters: Mapping[str, Tensor],
    others: Iterable[Tensor],
    weight_decay: float,
    scales: Collection[str] = (),
) -> torch.optim.Optimizer:
    """An optimizer whose groups know their relative rate, for `set_rate`.

    Args:
        parameters: The student's parameters.
        others: Parameters that are trained beside and thrown away.
        weight_decay: On parameters of two or more dimensions.
        scales: Names of parameters that are scales of quantizers: however small, they move by a
            share of themselves, and slowly, since all that is rounded moves with them.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    named = [*parameters.items(), *(("", each) for each in others)]
    for name, parameter in named:
        is_vector = parameter.ndim < 2
        if name in scales:
            size = float(parameter.detach().abs().double().mean())
            groups.setdefault((_SLOWNESS * size, 0.0), []).append(parameter)
            continue
        least = _SMALLEST_VECTOR if is_vector else _SMALLEST_WEIGHT
        size = max(float(parameter.detach().double().square().mean().sqrt()), least)
        rounded = _ROUNDING ** round(math.log(size, _ROUNDING))
        groups.setdefault((rounded, 0.0 if is_vector else weight_decay), []).append(parameter)
    options: list[dict[str, Any]] = [
        {"params": members, "weight_decay": decay, "scale": scale}
        for (scale, decay), members in groups.items()
    ]
    return torch.optim.AdamW(options, lr=0.0, betas=(0.9, 0.98), fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the relative rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
