"""A bounded sample of the rows of a layer's input, the same however the data was divided."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from onnxopt.calibration.activation import Activation, UnobservableError
from onnxopt.calibration.lots import DRAWN
from onnxopt.calibration.observer import Observer, ObserverSpec
from onnxopt.numerics.gram import mean_gram
from onnxopt.numerics.layer_inputs import LayerInput

__all__ = ["Rows", "RowsObserver", "rows_of_a_sample"]

Array = np.ndarray[Any, Any]

#: So many rows for each of their columns are enough, where there are many samples.
_FOR_A_COLUMN = 4
#: So many of a sample are never too many, nor so many numbers in up to so many rows.
_ALWAYS = 8
_NUMBERS, _CHEAP = 1 << 14, 32
_OTHER_COLUMNS = "has another number of columns in another sample"


class RowsObserver(Observer):
    """Rows of the samples with the least lots; see `onnxopt.calibration.lots`.

    What is kept is a part of the input, which holds the rows: a convolution's rows overlap.
    Merging is exact in any order.

    Attributes:
        seen: How many samples drew a lot here.
    """

    def __init__(self, layer: LayerInput | None, most_bytes: int, per_sample: int) -> None:
        self.layer, self._most_bytes, self._per_sample = layer, most_bytes, per_sample
        self._kept: list[tuple[int, Array]] = []
        self._most: tuple[tuple[int, ...], int] | None = None  # of the last shape, mostly the next

    def update(self, activation: Activation) -> None:  # noqa: D102
        assert self.layer is not None, "observations from a file are not added to"
        _ = activation.extremes  # refuses what is not finite
        lot, shape = activation.lot, activation.shape
        if lot is None or (len(self._kept) == DRAWN and lot > self._kept[-1][0]):
            return
        try:
            if self._most is None or self._most[0] != shape:
                self._most = shape, self._rows_of_a_sample(self.layer, shape)
            if self.layer.has_channels:
                part = self.layer.part(activation.parted, self._most[1], lot)
            else:
                part = self.layer.part(activation.values, self._most[1], lot)
        except ValueError as error:
            raise UnobservableError(str(error)) from error
        self._take(lot, part.astype(np.float32, copy=False))

    def _rows_of_a_sample(self, layer: LayerInput, shape: tuple[int, ...]) -> int:
        size, columns = layer.row_size(shape), layer.columns(shape)
        return rows_of_a_sample(size, columns, self._per_sample, self._most_bytes)

    def miss(self, lot: int) -> None:  # noqa: D102
        self._take(lot, np.zeros(0, np.float32))

    def _take(self, lot: int, part: Array) -> None:
        """Keep a part of one more sample, whose lot is none of those that are kept."""
        known = next((each for _, each in self._kept if each.size), part)
        if part.size and self._columns(part) != self._columns(known):
            raise UnobservableError(_OTHER_COLUMNS)
        bisect.insort(self._kept, (lot, part), key=_lot)
        del self._kept[DRAWN:]

    def merge(self, other: Self) -> None:  # noqa: D102
        kept = sorted(self._kept + other._kept, key=_lot)
        if any(one[0] == two[0] for one, two in itertools.pairwise(kept)):
            kept.sort(key=lambda each: (each[0], each[1].tobytes()))  # of different passes
        kept = kept[:DRAWN]
        if len({self._columns(part) for _, part in kept if part.size}) > 1:
            raise UnobservableError(_OTHER_COLUMNS)
        self._kept = kept

    def _columns(self, part: Array) -> tuple[int, ...]:
        """What parts of inputs to the same layer have in common."""
        return (part.ndim, part.shape[1] if part.ndim == 2 else part.shape[0] * part.shape[1])

    @property
    def seen(self) -> int:
        """Rows are of so many samples."""
        return sum(part.size > 0 for _, part in self._kept)

    @property
    def rows(self) -> Array:
        """All of the rows, float32 [R, groups, K]; without elements when nothing was seen."""
        assert self.layer is not None, "observations from a file have no layer by themselves"
        found = [self.layer.rows_of_part(part) for _, part in self._kept if part.size]
        if not found:
            return np.zeros((0, 0, 0), np.float32)
        return np.ascontiguousarray(np.concatenate(found, axis=1).transpose(1, 0, 2))

    def some(self, most_bytes: int, least: int = 8) -> Array:
        """Rows that take no more memory, evenly spread, but at least a few; see `rows`."""
        rows = self.rows
        if not len(rows):
            return rows
        most = max(least, most_bytes // max(1, rows[0].nbytes))
        return rows if len(rows) <= most else rows[np.arange(most) * len(rows) // most]

    def gram(self) -> Array:
        """Mean of ``x^T x`` over the rows x, float64 [groups, K, K]."""
        return mean_gram(self.rows.transpose(1, 0, 2))

    def arrays(self) -> dict[str, Array]:  # noqa: D102
        parts = [_ordered(part) for _, part in self._kept]
        axes = max((part.ndim for part in parts if part.size), default=0)
        shapes = [part.shape if part.size else (0,) * axes for part in parts]
        numbers = [part.reshape(-1) for part in parts]
        return {
            "lots": np.array([lot for lot, _ in self._kept], np.uint64),
            "shapes": np.array(shapes, np.int64).reshape(len(shapes), axes),
            "numbers": np.concatenate([np.zeros(0, np.float32), *numbers]),
            "settings": np.array([self._most_bytes, self._per_sample]),
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, Array]) -> Self:  # noqa: D102
        made = cls(None, *map(int, arrays["settings"]))
        start = 0
        for lot, shape in zip(arrays["lots"], arrays["shapes"], strict=True):
            stop = start + math.prod(map(int, shape)) if len(shape) else start
            made._kept.append((int(lot), arrays["numbers"][start:stop].reshape(shape)))
            start = stop
        return made


@dataclasses.dataclass(frozen=True)
class Rows(ObserverSpec[RowsObserver]):
    """Ask for a sample of the rows of a layer's input.

    Attributes:
        layer: How the tensor becomes rows.
        most_bytes: Rows may take so many bytes together (but at least one of each sample is kept).
        per_sample: Keep at most so many rows of a sample.
    """

    kind: ClassVar[str] = "rows"
    observer: ClassVar[type[Observer]] = RowsObserver
    layer: LayerInput
    most_bytes: int = 1 << 20
    per_sample: int = 64

    @property
    def takes_blocks(self) -> bool:  # noqa: D102
        return self.layer.has_channels

    def start(self) -> RowsObserver:  # noqa: D102
        return RowsObserver(self.layer, self.most_bytes, self.per_sample)

    def bytes_of(self, size: int, columns: int) -> int:
        """Memory that the rows of a layer take, at most.

        Args:
            size: Numbers in a row, those of all groups together.
            columns: Those of one group.
        """
        most = rows_of_a_sample(size, columns, self.per_sample, self.most_bytes)
        return 4 * DRAWN * most * size

    def restore(self, arrays: Mapping[str, Array]) -> RowsObserver:  # noqa: D102
        restored = RowsObserver.restore(arrays)
        restored.layer = self.layer
        return restored


def rows_of_a_sample(size: int, columns: int, per_sample: int, most_bytes: int) -> int:
    """How many rows are kept of a sample.

    Args:
        size: Numbers in a row, those of all groups together.
        columns: Those of one group.
        per_sample: See `Rows`.
        most_bytes: See `Rows`.
    """
    room = most_bytes // max(1, 4 * size * DRAWN)
    cheap = min(_CHEAP, _NUMBERS // max(1, size))
    enough = max(_ALWAYS, cheap, _FOR_A_COLUMN * columns // DRAWN)
    return max(1, min(per_sample, room, enough))


def _ordered(part: Array) -> Array:
    """The part with its channels, if it has any, in one axis: the same however they lay."""
    if part.ndim < 3:
        return part
    return part.reshape(part.shape[0] * part.shape[1], 1, *part.shape[2:])


def _lot(kept: tuple[int, Array]) -> int:
    return kept[0]
