"""Feeds: the inputs of one run, read from .npz files or made up from the model's signature.

A feed is a dict from input name to array. Sizes of dynamic dimensions and integers are made up so
that the model runs: token ids stay within the table they index, masks are ones, and sizes grow
until the model takes them.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import constant
from onnxopt.errors import FeedError, OnnxoptError, RuntimeCrashError

__all__ = [
    "Feed",
    "FeedRequest",
    "FeedSource",
    "input_named",
    "required_inputs",
    "value_from_text",
]

Feed = dict[str, Any]

#: Pairs of sizes to try for dimensions that are neither fixed nor the first, smallest first.
_SIZE_PAIRS = ((16, 24), (64, 96), (1, 2), (224, 256), (512, 576), (8, 8), (32, 48), (1024, 1536))
#: Sizes of the first dimension, which is the batch more often than not.
_BATCH_SIZES = (1, 3)
#: A model that takes longer than this for a feed is not fed with every seed.
_SLOW_SECONDS = 0.25
#: Search so long for a plan of which both sizes run, when one is known of which one does.
_SEARCH_SECONDS = 1.0
#: At most so many dimensions after the first are taken for the batch.
_MOST_BATCH_SLOTS = 2
#: Walk so many steps from an integer input to find the table that it indexes.
_INDEX_SEARCH_DEPTH = 6


@dataclasses.dataclass(frozen=True)
class FeedRequest:
    """What the user says about made-up inputs.

    Attributes:
        values: Whole inputs, by name.
        shapes: Shapes, by input name; -1 leaves a dimension open.
        seeds: One set of feeds is made with each.
    """

    values: Mapping[str, np.ndarray[Any, Any]] = dataclasses.field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1)


class FeedSource:
    """Where the feeds of a model come from.

    It looks at the model once, when it is made; the model may change afterwards.

    Args:
        model: The model whose inputs are to be fed.
        data: A folder of ``.npz`` files (one feed each) or one ``.npz`` of stacked samples; None to
            make inputs up.
        request: What the user fixed of made-up inputs.

    Raises:
        FeedError: When the request does not fit the model.
    """

    def __init__(
        self,
        model: ir.Model,
        data: pathlib.Path | None = None,
        request: FeedRequest | None = None,
    ) -> None:
        self._data = data
        self._request = request or FeedRequest()
        _check_request(model, self._request)
        self._inputs = required_inputs(model)
        self._limits = {value.name or "": _index_limit(value) for value in self._inputs}

    def feeds(self, try_run: Callable[[Feed], object], limit: int) -> list[Feed]:
        """At most ``limit`` feeds.

        Made-up ones are such that the model runs: every dynamic dimension has two sizes among them
        (unless only one lets the model run), smaller first, and there is one feed for each size and
        seed (for models that take long, one for each size).

        Args:
            try_run: Runs the original model on a feed; raises `OnnxoptError` when that fails.
            limit: How many to give.

        Raises:
            FeedError: When the data does not fit, or nothing that was tried lets the model run;
                says what to give.
        """
        if self._data is None:
            return self._made_up(try_run)[:limit]
        feeds = list(itertools.islice(self.read(), limit))
        if not feeds:
            raise FeedError(f"{self._data} holds no samples")
        return feeds

    def read(self) -> Iterator[Feed]:
        """Read the feeds of the data one by one.

        One file holds stacked samples: arrays by input name whose first axis counts samples. A
        sample keeps that axis (with size 1, or the model's fixed batch) unless the model's input
        has one dimension fewer than the array. Arrays of other names are passed over.

        Raises:
            FeedError: When the path or its arrays do not fit the model.
        """
        assert self._data is not None
        if self._data.is_dir():
            return _folder_feeds(self._data, self._inputs)
        return _stacked_feeds(self._data, self._inputs)

    def _made_up(self, try_run: Callable[[Feed], object]) -> list[Feed]:
        failure: OnnxoptError | None = None
        partial: list[Feed] = []  # of the first plan of which only the smaller size runs
        end = time.perf_counter() + _SEARCH_SECONDS
        for sizes, like_batch in _plans(self._inputs, self._request):
            feeds: list[Feed] = []
            complete = True
            start, slow = time.perf_counter(), False
            for size, batch in zip(sizes, _BATCH_SIZES, strict=True):
                plan = _Plan(size, batch, like_batch)
                for seed in self._request.seeds[: 1 if slow else None]:
                    feed = _make_feed(self._inputs, self._request, self._limits, plan, seed)
                    try:
                        try_run(feed)
                    except RuntimeCrashError:
                        raise  # the session is gone with the process that ran it
                    except OnnxoptError as error:
                        failure, complete = error, False
                        break
                    feeds.append(feed)
                    slow = time.perf_counter() - start > _SLOW_SECONDS
                    if slow:
                        break
                if not feeds:
                    break  # the smaller size fails already
            if feeds and complete:
                return _distinct(feeds)
            partial = partial or feeds
            if partial and time.perf_counter() > end:
                break
        if partial:
            return _distinct(partial)
        raise FeedError(_advice(self._inputs, self._request, failure))


def required_inputs(model: ir.Model) -> list[ir.Value]:
    """Graph inputs that have no default."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


# Files


def _folder_feeds(path: pathlib.Path, inputs: Sequence[ir.Value]) -> Iterator[Feed]:
    files = sorted(path.glob("*.npz"))
    if not files:
        raise FeedError(f"{path} holds no .npz files; each should hold one feed, by input name")
    for file in files:
        arrays = _read_npz(file)
        yield {
            value.name or "": _cast(arrays[_key(file, arrays, value)], value, file)
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
            feed[name] = _cast(part, value, path)
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


def _cast(array: np.ndarray[Any, Any], value: ir.Value, path: pathlib.Path) -> Any:
    """The array in the input's dtype, if no number changes class (float stays float)."""
    if value.dtype is None or value.dtype == ir.DataType.STRING:
        return array
    wanted = value.dtype.numpy()
    if array.dtype == wanted:
        return np.ascontiguousarray(array)
    if array.dtype.kind == "f" and np.dtype(wanted).kind in "iub":
        raise FeedError(
            f"array '{value.name}' of {path} is {array.dtype}, but the input takes {wanted}"
        )
    return np.ascontiguousarray(array.astype(wanted))


# Made-up inputs


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Sizes of open dimensions: ``batch`` for the first of an input and for ``like_batch``."""

    size: int
    batch: int
    like_batch: frozenset[str]


def _plans(
    inputs: Sequence[ir.Value], request: FeedRequest
) -> Iterator[tuple[tuple[int, int], frozenset[str]]]:
    """Pairs of sizes, and the open dimensions that are the batch too, likely ones first.

    Recurrent states have their batch in the middle, and no name says so; hence the combinations.
    """
    slots = list(
        dict.fromkeys(
            _slot(value, axis)
            for value in inputs
            for axis in _open_axes(value, request)
            if axis > 0
        )
    )
    if not slots:
        yield (1, 1), frozenset()
        return
    for count in range(min(len(slots), _MOST_BATCH_SLOTS) + 1):
        pairs = _SIZE_PAIRS if count < len(slots) else _SIZE_PAIRS[:1]  # nothing left to size
        for chosen in itertools.combinations(slots, count):
            for sizes in pairs:
                yield sizes, frozenset(chosen)


def _slot(value: ir.Value, axis: int) -> str:
    """Dimensions of one name have one size; a dimension without a name stands for itself."""
    dim = value.shape[axis] if value.shape is not None else 0
    symbol = None if isinstance(dim, int) else dim.value
    return symbol if symbol is not None else f"{value.name} axis {axis}"


def _make_feed(
    inputs: Sequence[ir.Value],
    request: FeedRequest,
    limits: Mapping[str, int | None],
    plan: _Plan,
    seed: int,
) -> Feed:
    symbols: dict[str, int] = {}
    _bind_symbols(inputs, request, symbols)
    generator = np.random.default_rng(seed)
    feed: Feed = {}
    for value in inputs:
        name = value.name or ""
        if name in request.values:
            feed[name] = request.values[name]
            continue
        shape = _make_shape(value, request.shapes.get(name), symbols, plan)
        feed[name] = _make_value(value, shape, limits[name], generator, seed)
    return feed


def _bind_symbols(
    inputs: Sequence[ir.Value], request: FeedRequest, symbols: dict[str, int]
) -> None:
    """A symbol that the user fixed in one input has that size in all."""
    for value in inputs:
        name = value.name or ""
        if value.shape is None:
            continue
        given = request.shapes.get(name)
        if given is None and name in request.values:
            given = request.values[name].shape
        if given is not None and len(given) == len(value.shape):
            for dim, number in zip(value.shape, given, strict=True):
                if not isinstance(dim, int) and dim.value is not None and number >= 0:
                    symbols[dim.value] = int(number)


def _make_shape(
    value: ir.Value, given: tuple[int, ...] | None, symbols: dict[str, int], plan: _Plan
) -> tuple[int, ...]:
    if value.shape is None:
        return given if given is not None else (plan.batch,)
    shape: list[int] = []
    for axis, dim in enumerate(value.shape):
        chosen = given[axis] if given is not None else -1
        if chosen < 0 and isinstance(dim, int) and dim >= 0:
            chosen = dim
        elif chosen < 0:  # exporters write -1, too, for a size that is not fixed
            slot = _slot(value, axis)
            is_batch = axis == 0 or slot in plan.like_batch
            chosen = symbols.setdefault(slot, plan.batch if is_batch else plan.size)
        shape.append(chosen)
    return tuple(shape)


def _make_value(
    value: ir.Value,
    shape: tuple[int, ...],
    limit: int | None,
    generator: np.random.Generator,
    seed: int,
) -> Any:
    if isinstance(value.type, ir.SequenceType):
        element = ir.Value(name=value.name, type=value.type.elem_type, shape=value.shape)
        return [_make_value(element, shape, limit, generator, seed) for _ in range(2)]
    dtype = value.dtype
    if dtype == ir.DataType.STRING:
        return generator.choice(np.array(["alpha", "beta", "gamma"], dtype=object), size=shape)
    if dtype is None or dtype == ir.DataType.UNDEFINED or isinstance(value.type, ir.OptionalType):
        raise FeedError(
            f"input '{value.name}' is of a kind that cannot be made up; give it with --data"
        )
    if dtype == ir.DataType.BOOL:
        return generator.random(shape) < 0.5
    numpy_type = dtype.numpy()
    if dtype.is_integer():
        if "mask" in (value.name or "").lower():
            return np.ones(shape, dtype=numpy_type)
        top = min(limit or 2, 2 ** min(dtype.bitwidth - 1, 31) - 1)
        return generator.integers(0, max(top, 1), size=shape).astype(numpy_type)
    # Odd seeds are like pixels, even ones like normalized features.
    numbers = generator.random(shape) if seed % 2 else generator.standard_normal(shape)
    return np.asarray(numbers).astype(numpy_type)


def _index_limit(value: ir.Value) -> int | None:
    """Number of rows of the smallest table that the integers of this input select from."""
    if value.dtype is None or not value.dtype.is_integer():
        return None
    limits: list[int] = []
    frontier, seen = [value], {value}
    for _ in range(_INDEX_SEARCH_DEPTH):
        following: list[ir.Value] = []
        for current in frontier:
            for node, index in current.uses():
                if node.op_type in ("Gather", "GatherElements") and index == 1:
                    table = constant(node.inputs[0])
                    axis = node.attributes.get("axis")
                    if table is not None and len(table.shape):
                        at = 0 if axis is None or axis.is_ref() else axis.as_int()
                        limits.append(int(table.shape.numpy()[at]))
                elif node.op_type in ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze"):
                    following.extend(each for each in node.outputs if each not in seen)
                    seen.update(node.outputs)
        frontier = following
    return min(limits, default=None)


def _distinct(feeds: list[Feed]) -> list[Feed]:
    """Drop repetitions, which come from models without floats and dynamic sizes."""
    kept: list[Feed] = []
    for feed in feeds:
        if not any(_equal(feed, other) for other in kept):
            kept.append(feed)
    return kept


def _equal(one: Feed, other: Feed) -> bool:
    return all(
        isinstance(array, np.ndarray)
        and isinstance(other[name], np.ndarray)
        and array.shape == other[name].shape
        and bool((array == other[name]).all())
        for name, array in one.items()
    )


def _open_axes(value: ir.Value, request: FeedRequest) -> list[int]:
    """Axes of an input whose size neither the model nor the user fixes."""
    name = value.name or ""
    if name in request.values or value.shape is None:
        return []
    given = request.shapes.get(name)
    return [
        axis
        for axis, dim in enumerate(value.shape)
        if not (isinstance(dim, int) and dim >= 0) and (given is None or given[axis] < 0)
    ]


def _check_request(model: ir.Model, request: FeedRequest) -> None:
    for name in (*request.values, *request.shapes):
        input_named(model, name)
    for name, shape in request.shapes.items():
        known = input_named(model, name).shape
        if known is not None and len(known) != len(shape):
            raise FeedError(
                f"input '{name}' has {len(known)} dimensions ({known}), not {len(shape)}"
            )


def _advice(inputs: Sequence[ir.Value], request: FeedRequest, failure: OnnxoptError | None) -> str:
    """Say which inputs may be the trouble and how to give them."""
    doubtful = [value for value in inputs if _open_axes(value, request)] or [
        value
        for value in inputs
        if value.name not in request.values and value.dtype is not None and value.dtype.is_integer()
    ]
    named = [value for value in doubtful if failure and f"'{value.name}'" in str(failure)]
    culprit = (named or doubtful or list(inputs))[:3]
    names = ", ".join(f"'{value.name}' {value.shape or ''}".strip() for value in culprit)
    example = culprit[0] if culprit else None
    how = ""
    if example is not None:
        sizes = ",".join(str(d) if isinstance(d, int) else "1" for d in example.shape or ())
        how = (
            f"; give --shape {example.name}:{sizes or '1'}, --input {example.name}=VALUE, or --data"
        )
    return f"no made-up input lets the model run (see {names}){how}. ONNX Runtime said: {failure}"


def value_from_text(text: str, value: ir.Value) -> np.ndarray[Any, Any]:
    """Read ``16000`` or ``1,2,3`` or a ``.npy`` file as an input of the value's type.

    Raises:
        FeedError: When the text does not fit.
    """
    if text.endswith(".npy"):
        try:
            array = np.load(text, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise FeedError(f"{text} is not a readable .npy file: {error}") from error
        return np.asarray(_cast(array, value, pathlib.Path(text)))
    dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
    try:
        numbers = [
            float(part) if "." in part or "e" in part else int(part) for part in text.split(",")
        ]
    except ValueError as error:
        raise FeedError(
            f"'{text}' is not a value for input '{value.name}': write numbers with commas, or name "
            "an .npy file"
        ) from error
    array = np.array(numbers).astype(dtype)
    shape = () if value.shape is None else tuple(value.shape)
    fixed = [dim if isinstance(dim, int) else 1 for dim in shape]
    if array.size == int(np.prod(fixed)):
        return array.reshape(fixed)
    if len(shape) == 1:
        return array
    if array.size == 1:
        return np.full(fixed, array[0], dtype=dtype)
    raise FeedError(
        f"'{text}' has {array.size} numbers, which do not fit input '{value.name}' {shape}"
    )


def input_named(model: ir.Model, name: str) -> ir.Value:
    """The input of this name.

    Raises:
        FeedError: When there is none; suggests the nearest.
    """
    for value in model.graph.inputs:
        if value.name == name:
            return value
    names = [value.name or "" for value in model.graph.inputs]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(names)}"
    raise FeedError(f"the model has no input '{name}'; {hint}")
