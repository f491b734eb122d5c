"""Feeds read from .npz files: a folder of one feed each, or one file of stacked samples."""

from __future__ import annotations

import difflib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.data.feed import Feed, cast
from onnxopt.errors import FeedError

__all__ = ["read_feeds"]


def read_feeds(path: pathlib.Path, inputs: Sequence[ir.Value]) -> Iterator[Feed]:
    """Read feeds one by one.

    A folder holds one feed in each ``.npz`` file. One file holds stacked samples: arrays by input
    name whose first axis counts samples. A sample keeps that axis (with size 1, or the model's
    fixed batch) unless the model's input has one dimension fewer than the array. Arrays of other
    names are passed over.

    Args:
        path: A folder or a file.
        inputs: The inputs to feed.

    Raises:
        FeedError: When the path or its arrays do not fit the inputs.
    """
    return _folder_feeds(path, inputs) if path.is_dir() else _stacked_feeds(path, inputs)


def _folder_feeds(path: pathlib.Path, inputs: Sequence[ir.Value]) -> Iterator[Feed]:
    files = sorted(path.glob("*.npz"))
    if not files:
        raise FeedError(f"{path} holds no .npz files; each should hold one feed, by input name")
    for file in files:
        arrays = _read_npz(file)
        yield {
            value.name or "": cast(arrays[_key(file, arrays, value)], value, file)
            for value in inputs
        }


def _stacked_feeds(path: pathlib.Path, inputs: Sequence[ir.Value]) -> Iterator[Feed]:
    arrays = _read_npz(path)
    stacks = {value.name or "": arrays[_key(path, arrays, value)] for value in inputs}
    counts: set[int] = set()
    steps: dict[str, int] = {}
    for value in inputs:
        stack = stacks[value.name or ""]
        rank = None if value.shape is None else len(value.shape)
        if stack.ndim == 0 or rank not in (None, stack.ndim, stack.ndim - 1):
            raise FeedError(
                f"array '{value.name}' of {path} has shape {list(stack.shape)}, which is no "
                f"stack of samples for an input of {rank} dimensions"
            )
        first = value.shape[0] if value.shape is not None and rank == stack.ndim else 1
        keeps_batch = rank is None or rank == stack.ndim
        steps[value.name or ""] = (first if isinstance(first, int) else 1) if keeps_batch else 0
        counts.add(len(stack) // max(1, steps[value.name or ""]))
    if len(counts) > 1:
        raise FeedError(f"the arrays of {path} hold different numbers of samples: {sorted(counts)}")
    for index in range(counts.pop() if counts else 1):
        feed: Feed = {}
        for value in inputs:
            name = value.name or ""
            step = steps[name]
            part = stacks[name][index * step : (index + 1) * step] if step else stacks[name][index]
            feed[name] = cast(part, value, path)
        yield feed


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise FeedError(f"{path} does not exist") from error
    except Exception as error:  # zipfile, numpy and the OS each have their own
        raise FeedError(f"{path} is not a readable .npz file: {error}") from error


def _key(path: pathlib.Path, arrays: Mapping[str, Any], value: ir.Value) -> str:
    name = value.name or ""
    if name not in arrays:
        close = difflib.get_close_matches(name, arrays, n=1)
        hint = f"; is it '{close[0]}'?" if close else f"; it has {', '.join(arrays) or 'nothing'}"
        raise FeedError(f"{path} has no array for input '{name}'{hint}")
    return name
