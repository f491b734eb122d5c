"""Channels that are the same in every run, but not everywhere: behind a padded depthwise layer.

Of a constant c such a convolution makes ``bias + c * (sum of the taps that see no padding)``: one
number inside, others along the border. Which taps are in the input depends on the place alone, so
there are only so many kinds of places, the same for all channels of the convolution. A profile is
the number of a channel at each kind of place. Elementwise operators act on profiles. Where one
profile is a linear combination of others, the channel is that combination of theirs at each place,
of any input of any size, and any layer that sums over them can do without it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.channels.known import Known, Mask
from onnxopt.channels.parameters import Parameter

if TYPE_CHECKING:
    from onnxopt.channels.tracer import Step

__all__ = ["Border", "Profiles", "Window", "border_profiles", "windows"]

#: First tap that is in the input, and the one after the last.
Window = tuple[int, int]
#: More kinds of places than this are not told apart: so many channels would have to stay.
_KINDS = 128


@dataclasses.dataclass(frozen=True)
class Profiles:
    """What is known of the channels of one value behind a border.

    Attributes:
        mask: Channels that depend on the place alone, in the shape of the value's channels.
        values: Their numbers [kinds of places, \\*shape]; anything where the mask is False.
    """

    mask: Mask
    values: NDArray[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Border:
    """A padded depthwise convolution.

    Attributes:
        source: What it reads.
        output: What it makes.
        weights: Its weights [channels, 1, \\*window].
        bias: Its bias.
        many: Outputs of each input channel.
        places: The taps that lie in the input, by kind of place, for each axis of the window.
    """

    source: ir.Value
    output: ir.Value
    weights: Parameter
    bias: Parameter | None
    many: int
    places: tuple[tuple[Window, ...], ...]

    def profiles(self, given: Known | None) -> Profiles | None:
        """What becomes of the constants that are not 0; None when there are none.

        Args:
            given: What is known of the input.
        """
        if self.weights.is_quantized or given is None or not given.nonzero.any():
            return None
        if not 1 < math.prod(map(len, self.places)) <= _KINDS:
            return None
        numbers, taps = given.numbers.reshape(-1).repeat(self.many), self.weights.numbers
        start = np.zeros(len(taps)) if self.bias is None else self.bias.numbers
        axes = tuple(range(1, taps.ndim))
        rows = [
            start + numbers * taps[:, :, *(slice(*each) for each in kind)].sum(axis=axes)
            for kind in itertools.product(*self.places)
        ]
        shape = (1, -1, *[1] * (taps.ndim - 2))
        with np.errstate(over="ignore"):
            values = np.stack(rows).astype(self.weights.stored.dtype)
        mask = given.nonzero.reshape(-1).repeat(self.many)
        return Profiles(mask.reshape(shape), values.reshape(len(rows), *shape))


def windows(
    size: int | None, taps: int, pads: tuple[int, int], stride: int, dilation: int
) -> tuple[Window, ...]:
    """The taps along an axis that may lie in the input, one entry for each kind of place.

    Args:
        size: Of the input along the axis; None for any.
        taps: Of the window.
        pads: Before and after the input; at most so much where ``size`` is None.
        stride: Between outputs.
        dilation: Between taps.
    """
    before, after = pads
    if size is None:
        firsts = range(min(taps, -(-before // dilation)) + 1)
        lasts = range(taps - min(taps, -(-after // dilation)), taps + 1)
        found = {(first, max(first, last)) for first in firsts for last in lasts}
    else:
        found = set()
        for start in range(-before, size + after - (taps - 1) * dilation, stride):
            first = min(taps, max(0, -(start // dilation)))
            last = min(taps, max(first, -((start - size) // dilation)))
            found.add((first, last))
    return tuple(sorted({(first, last) if first < last else (0, 0) for first, last in found}))


def border_profiles(
    borders: Sequence[Border], steps: Sequence[Step], known: Mapping[ir.Value, Known]
) -> list[dict[ir.Value, Profiles]]:
    """The profiles behind each border that has some, by value.

    Profiles of different borders are not comparable: an operator in which they meet ends both.

    Args:
        borders: Of a graph.
        steps: Of the same graph, in topological order.
        known: Its constants.
    """
    found: list[dict[ir.Value, Profiles]] = []
    for border in borders:
        made = border.profiles(known.get(border.source))
        if made is None:
            continue
        behind = {border.output: made}
        for step in steps:
            if step.in_place and not behind.keys().isdisjoint(step.inputs):
                result = _through(step, behind, known)
                if result is not None:
                    behind[step.output] = result
        found.append(behind)
    return found


def _through(
    step: Step, behind: Mapping[ir.Value, Profiles], known: Mapping[ir.Value, Known]
) -> Profiles | None:
    """What a step makes of profiles, kind by kind."""
    kinds = len(next(iter(behind.values())).values)
    results: list[Known] = []
    for kind in range(kinds):
        inputs = [
            None if value is None else _at(kind, behind.get(value), known.get(value))
            for value in step.inputs
        ]
        result = step.transfer(inputs)
        if result is None or not result.mask.any():
            return None
        results.append(result)
    mask: Mask = np.all([each.mask for each in results], axis=0)
    if (constant := known.get(step.output)) is not None:
        mask &= ~constant.mask
    return Profiles(mask, np.stack([each.values for each in results])) if mask.any() else None


def _at(kind: int, profiles: Profiles | None, known: Known | None) -> Known | None:
    """What is known at one kind of place."""
    if profiles is None:
        return known
    values = profiles.values[kind]
    if known is None:
        return Known(profiles.mask, values)
    return Known(known.mask | profiles.mask, np.where(known.mask, known.values, values))
