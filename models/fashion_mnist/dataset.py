"""Reads Fashion-MNIST from one ``.npz`` file or from the original gzipped IDX files."""

import argparse
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Where Debian's package `dataset-fashion-mnist` installs the IDX files.
DEFAULT_LOCATION = Path("/usr/share/datasets/fashion-mnist")

_IDX_UNSIGNED_BYTE = 8


@dataclass(frozen=True)
class FashionMnist:
    """The whole data set: images uint8 [n, 28, 28], labels int64 [n]."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def load(location: Path) -> FashionMnist:
    """Read the data set.

    Args:
        location: an ``.npz`` file holding ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or
            a folder with the four ``*-ubyte.gz`` files as they are published.

    Raises:
        FileNotFoundError: the location, or one of the four files, does not exist.
        KeyError: the ``.npz`` file lacks one of the four arrays.
        ValueError: a file is not an IDX file of bytes, or its size contradicts its header.
    """
    if location.is_dir():
        return FashionMnist(
            train_images=_read_idx(location / "train-images-idx3-ubyte.gz"),
            train_labels=_read_idx(location / "train-labels-idx1-ubyte.gz").astype(np.int64),
            test_images=_read_idx(location / "t10k-images-idx3-ubyte.gz"),
            test_labels=_read_idx(location / "t10k-labels-idx1-ubyte.gz").astype(np.int64),
        )
    with np.load(location) as arrays:
        return FashionMnist(
            train_images=arrays["x_train"],
            train_labels=arrays["y_train"].astype(np.int64),
            test_images=arrays["x_test"],
            test_labels=arrays["y_test"].astype(np.int64),
        )


def as_input(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn uint8 images [n, 28, 28] into what the model takes: float32 [n, 1, 28, 28] in [0, 1]."""
    return images[:, np.newaxis].astype(np.float32) / np.float32(255)


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """Give a script the option that says where the data set is."""
    parser.add_argument(
        "--data",
        type=Path,
        default=DEFAULT_LOCATION,
        help=".npz file with x_train, y_train, x_test and y_test, or a folder with the gzipped "
        "IDX files (default: %(default)s)",
    )


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file: bytes 0, 0, type, rank; big-endian uint32 sizes; the values."""
    with gzip.open(path) as stream:
        content = stream.read()
    if len(content) < 4 or content[:3] != bytes([0, 0, _IDX_UNSIGNED_BYTE]):
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    rank = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=rank, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)
