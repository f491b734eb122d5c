"""Arrays of an ``.npz`` file whose first axis counts samples, read part by part.

The whole of such an array may not fit into memory. Where the file holds it as it is, it is mapped;
where it is compressed, parts have to be read one after the other.
"""

from __future__ import annotations

import pathlib
import zipfile
from typing import IO, Any

import numpy as np

from onnxopt.errors import FeedError

__all__ = ["Stack", "open_stacks"]

Array = np.ndarray[Any, Any]

#: Length of what stands before a member of a zip archive, without its name and extra field, and
#: where in it the lengths of these two are (APPNOTE.TXT of PKWARE, section 4.3.7).
_LOCAL_HEADER = 30
_LENGTHS_AT = 26


class Stack:
    """One array of the file.

    Args:
        path: The file.
        member: Its name in the archive.

    Attributes:
        shape: Shape of the whole array.
        dtype: Its type.
        seekable: Whether any part can be read without those before it.

    Raises:
        FeedError: When the file holds no array there that can be read.
    """

    def __init__(self, path: pathlib.Path, member: str) -> None:
        self._path, self._member = path, member
        try:
            with zipfile.ZipFile(path) as archive:
                info = archive.getinfo(member)
                with archive.open(info) as file:
                    self.shape, self._by_columns, self.dtype = _read_header(file)
                    header = file.tell()
        except Exception as error:
            raise _unreadable(path, error) from error
        if self.dtype.hasobject:
            raise _unreadable(path, ValueError(f"'{member}' holds Python objects"))
        self.seekable = info.compress_type == zipfile.ZIP_STORED
        self._header, self._at = header, info.header_offset
        self._mapped: Array | None = None
        self._open: IO[bytes] | None = None
        self._next = 0

    def part(self, start: int, stop: int) -> Array:
        """The entries from ``start`` to before ``stop`` of the first axis.

        Compressed arrays are read anew from their beginning when a part lies before the last one.

        Raises:
            FeedError: When the file cannot be read any more.
        """
        try:
            if self.seekable or self._by_columns or not self.shape:
                return np.array(self._whole()[start:stop] if self.shape else self._whole())
            return self._streamed(start, stop)
        except Exception as error:
            raise _unreadable(self._path, error) from error

    def _whole(self) -> Array:
        if self._mapped is None:
            if self.seekable and np.prod(self.shape):
                self._mapped = np.memmap(
                    self._path,
                    self.dtype,
                    "r",
                    offset=self._begin() + self._header,
                    shape=self.shape,
                    order="F" if self._by_columns else "C",
                )
            else:
                with np.load(self._path, allow_pickle=False) as archive:
                    self._mapped = archive[self._member.removesuffix(".npy")]
        return self._mapped

    def _begin(self) -> int:
        """Where in the file the member's content begins."""
        with self._path.open("rb") as file:
            file.seek(self._at + _LENGTHS_AT)
            lengths = file.read(4)
        name, extra = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
        return self._at + _LOCAL_HEADER + name + extra

    def _streamed(self, start: int, stop: int) -> Array:
        if self._open is None or start < self._next:
            archive = zipfile.ZipFile(self._path)
            self._open = archive.open(self._member)
            _read_header(self._open)
            self._next = 0
        entry = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        self._open.seek((start - self._next) * entry, 1)
        stop = min(stop, self.shape[0])
        count = max(0, stop - start)
        content = self._open.read(count * entry)
        self._next = start + count
        return np.frombuffer(bytearray(content), self.dtype).reshape(count, *self.shape[1:])


def open_stacks(path: pathlib.Path) -> dict[str, Stack]:
    """The arrays of a file, by name.

    Raises:
        FeedError: When it does not exist or is no ``.npz`` file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [each for each in archive.namelist() if each.endswith(".npy")]
    except FileNotFoundError as error:
        raise FeedError(f"{path} does not exist") from error
    except Exception as error:
        raise _unreadable(path, error) from error
    return {member.removesuffix(".npy"): Stack(path, member) for member in members}


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    return read(file)


def _unreadable(path: pathlib.Path, error: Exception) -> FeedError:
    return FeedError(f"{path} is not a readable .npz file: {error}")
