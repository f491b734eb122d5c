"""How small a model file gets when it is compressed as a file, as archives and web servers do."""

from __future__ import annotations

import os
import pathlib
import zlib

from onnxopt.model.protos import external_files

__all__ = ["zipped_bytes"]

_CHUNK_BYTES = 1 << 20


def zipped_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes that the file and its external data take after DEFLATE (RFC 1951), as zip and gzip use.

    Takes about a second for 30 MB, and no memory to speak of.
    """
    path = pathlib.Path(path)
    return sum(_deflated(file) for file in (path, *(path.parent / n for n in external_files(path))))


def _deflated(path: pathlib.Path) -> int:
    compressor, count = zlib.compressobj(), 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            count += len(compressor.compress(chunk))
    return count + len(compressor.flush())
