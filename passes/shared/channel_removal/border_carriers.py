"""Let channels behind a padded depthwise convolution be combinations of a few of them that stay.

There a channel is no constant, but a function of the kind of place (`onnxopt.channels.borders`).
Channels whose profiles are linear combinations of others go: with ``p_j = a_j + sum_k r_jk p_k`` at
each kind of place, a layer does without j when it has ``W_k + sum_j r_jk W_j`` for each k, and
``sum_j a_j * sum(W_j)`` in its bias where that is the same everywhere. However many channels there
are, no more have to stay than there are kinds of places: 9 for a window of 3 x 3, 16 where the
image may be one element high or wide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxopt.channels import Layer, Profiles

__all__ = ["Takeover", "lacking", "take_over", "takeovers"]

Mask = NDArray[np.bool_]
Numbers = NDArray[np.float64]

#: What a combination may differ by, and how large it may be, as multiples of the channel: its
#: rounding is so many times that of the runtime.
_RESIDUAL, _LARGEST = 1e-6, 16.0


@dataclasses.dataclass(frozen=True)
class Takeover:
    """Inputs of one group of a layer as combinations of others behind the same border.

    Attributes:
        gone: Inputs that are removed.
        stays: Inputs that are not.
        ratios: How much of each that stays is in each that goes [gone, stays].
        everywhere: What is left of each, the same at each place; 0 unless a bias can take it.
    """

    gone: NDArray[np.int64]
    stays: NDArray[np.int64]
    ratios: Numbers
    everywhere: Numbers


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Profiles of inputs of one group, each over its largest number.

    Attributes:
        gone: Inputs that are to go.
        stays: Inputs that stay.
        wanted: Profiles of those that go [gone, kinds].
        given: Profiles of those that stay, and 1 everywhere last if a bias can take that.
        scales: The largest numbers, of those that go and those that stay.
    """

    gone: NDArray[np.int64]
    stays: NDArray[np.int64]
    wanted: Numbers
    given: Numbers
    scales: tuple[Numbers, Numbers]

    def solve(self) -> tuple[Numbers, Mask]:
        """The combinations [gone, given], and which of those that go they are good for."""
        solution = np.linalg.lstsq(self.given.T, self.wanted.T, rcond=1e-6)[0]
        found = solution.T.astype(np.float64)
        off = np.abs(self.wanted - found @ self.given).max(axis=1)
        good: Mask = (off <= _RESIDUAL) & (np.abs(found).sum(axis=1) <= _LARGEST)
        return found, good


def takeovers(
    layer: Layer, profiles: Sequence[Profiles], gone: Mask, stays: Mask, biased: bool
) -> list[Takeover]:
    """How the inputs that go are made of those that stay; see `lacking` for when that is right.

    Args:
        layer: A layer.
        profiles: Of its inputs, for each border that some are behind.
        gone: Which inputs go and have to be accounted for: neither constant nor unread ones.
        stays: Which inputs stay.
        biased: Whether what is the same everywhere can go into a bias.
    """
    found: list[Takeover] = []
    for rows in _parted(layer, profiles, gone, stays, biased):
        ratios, _ = rows.solve()
        wanted, given = rows.scales
        count = len(rows.stays)
        everywhere = ratios[:, count] * wanted if biased else np.zeros(len(wanted))
        scaled = ratios[:, :count] * wanted[:, None] / given
        found.append(Takeover(rows.gone, rows.stays, scaled, everywhere))
    return found


def lacking(
    layer: Layer, profiles: Sequence[Profiles], gone: Mask, stays: Mask, biased: bool
) -> NDArray[np.int64]:
    """Inputs that have to stay so that the others are combinations of those that do.

    Args:
        layer: A layer.
        profiles: Of its inputs, for each border that some are behind.
        gone: Which inputs would go, as in `takeovers`.
        stays: Which inputs stay.
        biased: Whether what is the same everywhere can go into a bias.
    """
    more: list[int] = []
    for rows in _parted(layer, profiles, gone, stays, biased):
        _, good = rows.solve()
        if good.all():
            continue
        picked = _spanning(rows.given, rows.wanted[~good])
        more.extend(rows.gone[~good][picked or [0]].tolist())
    return np.array(more, np.int64)


def take_over(layer: Layer, blocks: NDArray[Any], found: Sequence[Takeover]) -> NDArray[Any]:
    """The weights [groups, inputs, outputs, taps] with what takes over for those that go."""
    result = np.array(blocks)
    size = blocks.shape[1]
    for each in found:
        if len(each.stays):
            group = int(each.gone[0]) // size
            columns = blocks[group, each.gone % size].astype(np.float64)
            total = np.tensordot(each.ratios.T, columns, 1)
            places = each.stays % size
            with np.errstate(over="ignore"):
                result[group, places] = (result[group, places] + total).astype(blocks.dtype)
    return result


def _parted(
    layer: Layer, profiles: Sequence[Profiles], gone: Mask, stays: Mask, biased: bool
) -> Iterator[_Rows]:
    """The profiles of each group and border from which something goes."""
    for each in profiles:
        mask = each.mask.reshape(-1)
        values = each.values.reshape(len(each.values), -1).astype(np.float64)
        for inputs in np.arange(len(mask)).reshape(layer.groups, -1):
            goes, others = inputs[(mask & gone)[inputs]], inputs[(mask & stays)[inputs]]
            if not len(goes):
                continue
            wanted, given = values[:, goes].T, values[:, others].T
            scales = (_largest(wanted), _largest(given))
            rows = given / scales[1][:, None]
            if biased:
                rows = np.vstack([rows, np.ones(len(values))])
            yield _Rows(goes, others, wanted / scales[0][:, None], rows, scales)


def _largest(rows: Numbers) -> Numbers:
    """The largest number of each row; 1 where all are 0."""
    largest = np.abs(rows).max(axis=1)
    return np.where(largest > 0, largest, 1.0)


def _spanning(given: Numbers, wanted: Numbers) -> list[int]:
    """Rows that, with those given, span all: always the one that is farthest from the span."""
    _, sizes, axes = np.linalg.svd(given, full_matrices=False)
    basis = axes[sizes > _RESIDUAL * sizes.max(initial=0.0)]
    left = wanted - (wanted @ basis.T) @ basis
    picked: list[int] = []
    while True:
        lengths = np.linalg.norm(left, axis=1)
        place = int(lengths.argmax())
        if lengths[place] <= _RESIDUAL / 2:
            return picked
        picked.append(place)
        unit = left[place] / lengths[place]
        left = left - np.outer(left @ unit, unit)
