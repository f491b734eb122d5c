"""Zeros that stay zero: what was pruned is kept pruned, number by number."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from torch import Tensor

__all__ = ["Masks", "n_m_pattern"]


class Masks:
    """Which numbers of which parameters may be other than zero.

    Args:
        parameters: Parameters by name.
        keep: For each masked parameter, True where a number may be other than zero.
    """

    def __init__(self, parameters: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> None:
        self._parameters = parameters
        self.keep = dict(keep)

    @classmethod
    def of_zeros(cls, parameters: Mapping[str, Tensor], patterns: Iterable[str] = ("*",)) -> Masks:
        """Keep every zero that is there now in parameters of two or more dimensions.

        Trained weights are hardly ever exactly zero, so zeros were put there. A channel whose bias
        and scale are zero, too, is not held down by that: its weights are zero, and without a
        gradient through them it stays as it is or becomes a constant, which is as cheap.
        """
        chosen = list(patterns)
        keep = {
            name: parameter.detach() != 0
            for name, parameter in parameters.items()
            if parameter.ndim >= 2
            and any(fnmatch.fnmatchcase(name, pattern) for pattern in chosen)
            and bool((parameter.detach() == 0).any())
        }
        return cls(parameters, keep)

    def __len__(self) -> int:
        return len(self.keep)

    @property
    def sparsity(self) -> float:
        """Share of zeros in the masked parameters."""
        total = sum(mask.numel() for mask in self.keep.values())
        kept = sum(int(mask.sum()) for mask in self.keep.values())
        return 1 - kept / total if total else 0.0

    def mask_gradients(self) -> None:
        """Take what is masked out of the gradients, so that it does not count when they are
        clipped, nor stay in the optimizer's memory.
        """
        for name, mask in self.keep.items():
            gradient = self._parameters[name].grad
            if gradient is not None:
                gradient.mul_(mask)

    def apply(self) -> None:
        """Make what is masked zero again. Multiplying would leave -0.0 and keep NaN."""
        for name, mask in self.keep.items():
            self._parameters[name].detach().masked_fill_(~mask, 0.0)

    def set(self, name: str, keep: Tensor) -> None:
        """Replace the mask of a parameter, and apply it."""
        self.keep[name] = keep
        self._parameters[name].detach().masked_fill_(~keep, 0.0)


def n_m_pattern(weight: Tensor, n: int, m: int, axis: int = 1) -> bool:
    """Whether of every ``m`` numbers along an axis at least ``m - n`` are zero (N:M sparsity)."""
    moved = weight.detach().movedim(axis, -1)
    if moved.shape[-1] % m:
        return False
    groups = moved.reshape(-1, m)
    return bool(((groups != 0).sum(dim=1) <= n).all())
