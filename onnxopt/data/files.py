"""Feeds read from .npz files: a folder of one feed each, or one file of stacked samples."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from onnxopt.data.feed import Feed, InputSpec, fitted
from onnxopt.data.portable import Portable
from onnxopt.data.stacks import Stack, open_stacks
from onnxopt.errors import FeedError

__all__ = ["FeedFiles"]


@dataclasses.dataclass(frozen=True)
class FeedFiles(Portable):
    """Feeds in files, read one by one whenever they are gone through.

    A folder holds one feed in each ``.npz`` file. One file holds stacked samples: arrays by input
    name whose first axis counts samples. A sample keeps that axis (with size 1, or the model's
    fixed batch) unless the model's input has one dimension fewer than the array. Arrays of other
    names are passed over.

    It can be pickled and be read by another process that sees the same files.

    Attributes:
        path: A folder or a file.
        inputs: The inputs to feed.
    """

    path: pathlib.Path
    inputs: tuple[InputSpec, ...]

    def __call__(self) -> Iterator[Feed]:
        """Read all.

        Raises:
            FeedError: When the path or its arrays do not fit the inputs.
        """
        return self.at(itertools.count())

    def count(self) -> int:
        """How many there are.

        Raises:
            FeedError: When the path or its arrays do not fit the inputs.
        """
        return len(_files(self.path)) if self.path.is_dir() else self._stacks.count

    @property
    def seekable(self) -> bool:
        """Whether a feed can be read without those before it.

        Raises:
            FeedError: When the path or its arrays do not fit the inputs.
        """
        return self.path.is_dir() or all(each.seekable for each in self._stacks.arrays.values())

    def at(self, positions: Iterable[int]) -> Iterator[Feed]:
        """The feeds at ascending positions; ends with the last there is.

        Raises:
            FeedError: When the path or its arrays do not fit the inputs.
        """
        return self._from_folder(positions) if self.path.is_dir() else self._stacked(positions)

    def place(self, number: int) -> str:
        """The file of a feed, or its number in the one file."""
        if self.path.is_dir():
            return f"sample {number} ({_files(self.path)[number - 1].name})"
        return f"sample {number} of {self.path.name}"

    def _from_folder(self, positions: Iterable[int]) -> Iterator[Feed]:
        files = _files(self.path)
        for position in positions:
            if position >= len(files):
                return
            arrays = _read_npz(files[position])
            yield {
                spec.name: fitted(
                    arrays[_key(files[position], arrays, spec)], spec, files[position]
                )
                for spec in self.inputs
            }

    def _stacked(self, positions: Iterable[int]) -> Iterator[Feed]:
        stacks = self._stacks
        # How far each has been read is a matter of whoever reads, who may be several at once.
        arrays = {name: copy.copy(stack) for name, stack in stacks.arrays.items()}
        for position in positions:
            if position >= stacks.count:
                return
            feed: Feed = {}
            for spec in self.inputs:
                array, step = arrays[spec.name], stacks.steps[spec.name]
                if step:
                    part = array.part(position * step, (position + 1) * step)
                else:
                    part = array.part(position, position + 1)[0]
                feed[spec.name] = fitted(part, spec, self.path)
            yield feed

    @property
    def _stacks(self) -> _Stacks:
        status = self.path.stat() if self.path.is_file() else None
        stamp = (0, 0) if status is None else (status.st_mtime_ns, status.st_size)
        return _opened(self.path, self.inputs, stamp)


@dataclasses.dataclass(frozen=True)
class _Stacks:
    """The arrays of one file, how many entries of each make a sample (0: one, without its axis),
    and how many samples there are.
    """

    arrays: Mapping[str, Stack]
    steps: Mapping[str, int]
    count: int


@functools.lru_cache(4)
def _opened(path: pathlib.Path, inputs: tuple[InputSpec, ...], stamp: tuple[int, int]) -> _Stacks:
    """Open a file; ``stamp`` tells apart what was written to it at different times."""
    del stamp
    known = open_stacks(path)
    arrays = {spec.name: known[_key(path, known, spec)] for spec in inputs}
    counts: set[int] = set()
    steps: dict[str, int] = {}
    for spec in inputs:
        shape = arrays[spec.name].shape
        rank = None if spec.shape is None else len(spec.shape)
        if not shape or rank not in (None, len(shape), len(shape) - 1):
            raise FeedError(
                f"array '{spec.name}' of {path} has shape {list(shape)}, which is no "
                f"stack of samples for an input of {rank} dimensions"
            )
        first = spec.shape[0] if spec.shape is not None and rank == len(shape) else 1
        keeps_batch = rank is None or rank == len(shape)
        steps[spec.name] = (1 if first is None else first) if keeps_batch else 0
        counts.add(shape[0] // max(1, steps[spec.name]))
    if len(counts) > 1:
        raise FeedError(f"the arrays of {path} hold different numbers of samples: {sorted(counts)}")
    return _Stacks(arrays, steps, counts.pop() if counts else 1)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise FeedError(f"{folder} holds no .npz files; each should hold one feed, by input name")
    return files


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise FeedError(f"{path} does not exist") from error
    except Exception as error:  # zipfile, numpy and the OS each have their own
        raise FeedError(f"{path} is not a readable .npz file: {error}") from error


def _key(path: pathlib.Path, arrays: Mapping[str, Any], spec: InputSpec) -> str:
    if spec.name not in arrays:
        close = difflib.get_close_matches(spec.name, arrays, n=1)
        hint = f"; is it '{close[0]}'?" if close else f"; it has {', '.join(arrays) or 'nothing'}"
        raise FeedError(f"{path} has no array for input '{spec.name}'{hint}")
    return spec.name
