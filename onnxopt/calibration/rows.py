"""A bounded sample of the rows of a layer's input, the same however the data was divided."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from onnxopt.calibration.activation import Activation, UnobservableError
from onnxopt.calibration.observer import Observer, ObserverSpec
from onnxopt.numerics.layer_inputs import LayerInput

__all__ = ["Rows", "RowsObserver"]

Array = np.ndarray[Any, Any]

#: However wide a row is, keep at least so many.
_LEAST_ROWS = 8
#: What is kept should come from so many samples at least.
_SAMPLES = 4


class RowsObserver(Observer):
    """The rows with the least hashes among those that were looked at.

    Of each sample some rows are looked at; of all of these, the ones whose contents have the least
    hash values are kept (bottom-k sampling, Cohen and Kaplan 2007). Which ones these are does not
    depend on the order of the samples, so merging is exact.

    Attributes:
        rows: float32 [R, groups, K]; without elements when nothing was seen.
        hashes: uint64 [R], ascending.
        seen: How many rows were looked at.
    """

    def __init__(self, layer: LayerInput | None, most_bytes: int, per_sample: int) -> None:
        self._layer, self._most_bytes, self._per_sample = layer, most_bytes, per_sample
        self.rows: Array = np.zeros((0, 0, 0), np.float32)
        self.hashes: Array = np.zeros(0, np.uint64)
        self.seen = 0

    def update(self, activation: Activation) -> None:  # noqa: D102
        assert self._layer is not None, "observations from a file are not added to"
        _ = activation.extremes  # refuses what is not finite
        try:
            rows = self._layer.rows(activation.values, self._looked_at(activation.values))
        except ValueError as error:
            raise UnobservableError(str(error)) from error
        rows = np.ascontiguousarray(rows.transpose(1, 0, 2), np.float32)
        if self.rows.size and self.rows.shape[1:] != rows.shape[1:]:
            raise UnobservableError("has another number of columns in another sample")
        self._add(rows, _hashes(rows), len(rows))

    def _looked_at(self, values: Array) -> int:
        """Rows of a sample to look at: no more than are worth it where only few can be kept."""
        assert self._layer is not None
        if values.ndim < 2:
            return self._per_sample
        room = self._most_bytes // max(1, 4 * self._layer.row_size(values))
        return min(self._per_sample, max(_LEAST_ROWS, room // _SAMPLES))

    def merge(self, other: Self) -> None:  # noqa: D102
        if not other.rows.size:
            return
        if self.rows.size and self.rows.shape[1:] != other.rows.shape[1:]:
            raise ValueError("the rows have different sizes")
        self._add(other.rows, other.hashes, other.seen)

    def _add(self, rows: Array, hashes: Array, seen: int) -> None:
        self.seen += seen
        if self.rows.size:
            rows = np.concatenate([self.rows, rows])
            hashes = np.concatenate([self.hashes, hashes])
        row_bytes = rows[0].nbytes if len(rows) else 1
        most = max(_LEAST_ROWS, self._most_bytes // max(1, row_bytes))
        kept = np.argsort(hashes, kind="stable")[:most]
        self.rows, self.hashes = rows[kept], hashes[kept]

    def arrays(self) -> dict[str, Array]:  # noqa: D102
        return {
            "rows": self.rows,
            "hashes": self.hashes,
            "settings": np.array([self.seen, self._most_bytes, self._per_sample]),
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, Array]) -> Self:  # noqa: D102
        seen, most_bytes, per_sample = map(int, arrays["settings"])
        made = cls(None, most_bytes, per_sample)
        made.seen, made.rows, made.hashes = seen, arrays["rows"], arrays["hashes"]
        return made


@dataclasses.dataclass(frozen=True)
class Rows(ObserverSpec[RowsObserver]):
    """Ask for a sample of the rows of a layer's input.

    Attributes:
        layer: How the tensor becomes rows.
        most_bytes: Keep at most so many bytes (but at least 8 rows).
        per_sample: Look at so many rows of a sample, evenly spread.
    """

    kind: ClassVar[str] = "rows"
    observer: ClassVar[type[Observer]] = RowsObserver
    layer: LayerInput
    most_bytes: int = 1 << 20
    per_sample: int = 64

    def start(self) -> RowsObserver:  # noqa: D102
        return RowsObserver(self.layer, self.most_bytes, self.per_sample)


def _hashes(rows: Array) -> Array:
    """A hash of the bits of each row, uint64 [R]."""
    bits = rows.reshape(len(rows), -1).view(np.uint32).astype(np.uint64)
    odd = np.random.default_rng(0).integers(1, 2**63, bits.shape[1], np.uint64) * 2 + 1
    mixed = (bits * odd).sum(axis=1, dtype=np.uint64)
    # The finalizer of SplitMix64 (Steele et al. 2014) spreads differences over all bits.
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
