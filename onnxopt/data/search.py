"""The search for made-up feeds with which a model runs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.data.feed import Feed
from onnxopt.data.making import make_feed
from onnxopt.data.request import FeedRequest, open_axes
from onnxopt.data.sizes import Plan, plans
from onnxopt.errors import FeedError, OnnxoptError, RuntimeCrashError

__all__ = ["search_feeds"]

#: Sizes of the first dimension, which is the batch more often than not.
_BATCH_SIZES = (1, 3)
#: A model that takes longer than this for a feed is not fed with every seed.
_SLOW_SECONDS = 0.25
#: Search so long for a plan of which both sizes run, when one is known of which one does.
_SEARCH_SECONDS = 1.0


def search_feeds(
    inputs: Sequence[ir.Value],
    limits: Mapping[str, int | None],
    request: FeedRequest,
    try_run: Callable[[Feed], object],
) -> list[Feed]:
    """Make up feeds, plan after plan of sizes, until the model runs with those of a plan.

    Args:
        inputs: The inputs to feed.
        limits: By input name, how many rows the table has that its integers select from.
        request: What the user fixed.
        try_run: Runs the model on a feed; raises `OnnxoptError` when that fails.

    Returns:
        The feeds of the first plan of which both sizes run; else, of the first of which one does.

    Raises:
        FeedError: When the model runs with no plan; says which input may be the trouble.
    """
    failures: list[OnnxoptError] = []
    partial: list[Feed] = []  # of the first plan of which only the smaller size runs
    end = time.perf_counter() + _SEARCH_SECONDS
    for sizes, like_batch in plans(inputs, request):
        feeds: list[Feed] = []
        complete = True
        start, slow = time.perf_counter(), False
        for size, batch in zip(sizes, _BATCH_SIZES, strict=True):
            plan = Plan(size, batch, like_batch)
            for seed in request.seeds[: 1 if slow else None]:
                feed = make_feed(inputs, request, limits, plan, seed)
                try:
                    try_run(feed)
                except RuntimeCrashError:
                    raise  # the session is gone with the process that ran it
                except OnnxoptError as error:
                    failures.append(error)
                    complete = False
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
    for sizes, like_batch in itertools.islice(plans(inputs, request), 1):  # the larger size, too
        plan = Plan(sizes[-1], _BATCH_SIZES[-1], like_batch)
        feed = make_feed(inputs, request, limits, plan, request.seeds[0])
        try:
            try_run(feed)
        except RuntimeCrashError:
            raise
        except OnnxoptError as error:
            failures.append(error)
        else:
            return [feed]
    raise FeedError(_advice(inputs, request, failures))


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


def _advice(
    inputs: Sequence[ir.Value], request: FeedRequest, failures: Sequence[OnnxoptError]
) -> str:
    """Say which inputs may be the trouble and how to give them."""
    failure = failures[-1] if failures else None
    doubtful = [value for value in inputs if open_axes(value, request)] or [
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
    same = len(failures) > 1 and len(set(map(str, failures))) == 1
    damaged = ", or the model is damaged: it fails in the same way at every size" if same else ""
    return (
        f"no made-up input lets the model run (see {names}){how}{damaged}. "
        f"ONNX Runtime said: {failure}"
    )
