"""Weights of two or three values a channel, trained straight through.

The parameters keep their full numbers while the optimizer works on them; the model always runs with
their few values, and the gradient of those is taken for the gradient of the full ones
(straight-through: Bengio et al., 2013, arXiv:1308.3432; Courbariaux et al., 2015, "BinaryConnect",
arXiv:1511.00363). What is written in the end are the few values, which `compact-weights` stores in
one or two bits each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

__all__ = ["LowBit", "LowBitKind", "binary", "ternary"]

LowBitKind = Literal["ternary", "binary"]

#: Threshold of ternary weights, in means of a channel's magnitude.
_THRESHOLD = 0.7


def ternary(weight: Tensor) -> Tensor:
    """Weights as -a, 0 or a in each output channel.

    Zero where ``|w| <= 0.7 mean |w|``; elsewhere the sign times a, the mean of ``|w|`` over what is
    not zero: Li, Zhang and Liu, 2016, "Ternary Weight Networks" (arXiv:1605.04711), equations 5, 6.
    """
    size = weight.abs()
    axes = _inner_axes(weight)
    kept = size > _THRESHOLD * size.mean(dim=axes, keepdim=True)
    count = kept.sum(dim=axes, keepdim=True).clamp_min(1)
    scale = (size * kept).sum(dim=axes, keepdim=True) / count
    return weight.sign() * scale * kept


def binary(weight: Tensor) -> Tensor:
    """Weights as -a or a in each output channel, with a the mean of ``|w|``.

    Rastegari et al., 2016, "XNOR-Net" (arXiv:1603.05279), equation 6. Zero counts as positive.
    """
    scale = weight.abs().mean(dim=_inner_axes(weight), keepdim=True)
    return scale.where(weight >= 0, -scale)


class LowBit:
    """Swaps the few values in and out.

    Args:
        parameters: The parameters that are to have few values, by name.
        kind: How few.
    """

    def __init__(self, parameters: Mapping[str, Tensor], kind: LowBitKind) -> None:
        self._parameters = dict(parameters)
        self._round = ternary if kind == "ternary" else binary
        self._full: dict[str, Tensor] = {}

    def __enter__(self) -> LowBit:
        """From here on the parameters have their few values."""
        for name, parameter in self._parameters.items():
            numbers = parameter.detach()
            self._full[name] = numbers.clone()
            numbers.copy_(self._round(numbers))
        return self

    def __exit__(self, *_: object) -> None:
        """The full numbers again; gradients stay."""
        for name, full in self._full.items():
            self._parameters[name].detach().copy_(full)
        self._full.clear()


def _inner_axes(weight: Tensor) -> tuple[int, ...]:
    """All axes but that of output channels: the first of a convolution, the last of a matrix."""
    if weight.ndim > 2:
        return tuple(range(1, weight.ndim))
    return (0,) if weight.ndim == 2 else ()
