"""Many samples in any order, in memory while they fit there and in a temporary file beyond."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["SampleStore"]

Arrays = dict[str, np.ndarray[Any, Any]]

#: (file offset in bytes, shape, dtype)
_Place = tuple[int, tuple[int, ...], np.dtype[Any]]


class SampleStore:
    """A growing list of dicts of arrays.

    Args:
        memory_bytes: Keep so much in memory; samples beyond that go to a file without a name, which
            is gone when the store is.
    """

    def __init__(self, memory_bytes: int = 4 << 30) -> None:
        self._limit = memory_bytes
        self._held_bytes = 0
        self._held: list[Arrays | dict[str, _Place]] = []
        self._file: Any = None

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of the arrays that are kept in memory."""
        return self._held_bytes

    def append(self, sample: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Add a sample. Arrays of objects stay in memory."""
        size = sum(array.nbytes for array in sample.values())
        objects = any(array.dtype.hasobject for array in sample.values())
        if objects or self._held_bytes + size <= self._limit:
            self._held.append(dict(sample))
            self._held_bytes += size
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="onnxopt-samples-")  # noqa: SIM115
        places: dict[str, _Place] = {}
        self._file.seek(0, 2)
        for name, array in sample.items():
            places[name] = (self._file.tell(), array.shape, array.dtype)
            self._file.write(np.ascontiguousarray(array).tobytes())
        self._held.append(places)

    def __getitem__(self, index: int) -> Arrays:
        sample = self._held[index]
        return {
            name: value if isinstance(value, np.ndarray) else self._read(value)
            for name, value in sample.items()
        }

    def _read(self, place: _Place) -> np.ndarray[Any, Any]:
        offset, shape, dtype = place
        self._file.seek(offset)
        count = int(np.prod(shape, dtype=np.int64))
        content = self._file.read(count * dtype.itemsize)
        return np.frombuffer(content, dtype=dtype).reshape(shape)
