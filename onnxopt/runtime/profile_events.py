"""From the events of ONNX Runtime's profile to the time that each node takes in one run."""

from __future__ import annotations

import bisect
import collections
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from onnxopt.runtime.messages import KernelTime

__all__ = ["kernel_times"]

_KERNEL = "_kernel_time"


def kernel_times(
    events: Sequence[Mapping[str, Any]], outputs: Mapping[str, tuple[str, ...]]
) -> list[KernelTime]:
    """The nodes that ran, in order, each with its median time in one run.

    The first run is left out, since memory is got then and caches are cold. What ran inside a node
    of control flow is counted by itself and not with that node.

    Args:
        events: The profile of several runs of one session.
        outputs: Names of the outputs by the names of the optimized graph's nodes.
    """
    ends = sorted(
        event["ts"] + event["dur"]
        for event in events
        if event.get("cat") == "Session" and event["name"] == "model_run"
    )
    kernels = [
        event for event in events if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)
    ]
    kernels.sort(key=lambda event: (event["ts"], -event["dur"]))
    spent: dict[tuple[str, str], dict[int, float]] = collections.defaultdict(
        lambda: collections.defaultdict(float)
    )
    types: dict[tuple[str, str], tuple[str, ...]] = {}
    for event, own in zip(kernels, _own_durations(kernels), strict=True):
        key = event["name"].removesuffix(_KERNEL), event.get("args", {}).get("op_name", "")
        run = bisect.bisect_left(ends, event["ts"])
        spent[key][run] += own * 1e-6
        types.setdefault(key, _input_types(event))
    counted = range(1, len(ends)) if len(ends) > 1 else range(len(ends))
    return [
        KernelTime(
            name,
            op_type,
            statistics.median(by_run.get(run, 0.0) for run in counted) if counted else 0.0,
            types[name, op_type],
            outputs.get(name, ()),
        )
        for (name, op_type), by_run in spent.items()
    ]


def _own_durations(kernels: Sequence[Mapping[str, Any]]) -> list[float]:
    """Durations in microseconds, less those of kernels that ran inside. Sorted by start."""
    own = [float(event["dur"]) for event in kernels]
    around: list[int] = []
    for index, event in enumerate(kernels):
        while around and _end(kernels[around[-1]]) <= event["ts"]:
            around.pop()
        if around and _end(event) <= _end(kernels[around[-1]]):
            own[around[-1]] = max(0.0, own[around[-1]] - float(event["dur"]))
        around.append(index)
    return own


def _end(event: Mapping[str, Any]) -> float:
    return float(event["ts"]) + float(event["dur"])


def _input_types(event: Mapping[str, Any]) -> tuple[str, ...]:
    inputs = event.get("args", {}).get("input_type_shape", [])
    return tuple(next(iter(each), "") for each in inputs)
