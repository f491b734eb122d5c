"""ONNX's own test cases of operators: nothing may be wrong, crash, or change its interface.

Each case is optimized three times: as it is, with all inputs but the first as constants, and with
all inputs as constants. Cases that ONNX Runtime cannot run or that are random are passed over; the
tests know how many there are at most.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest

import onnxopt
from onnxopt.model import Interface, from_proto, load
from onnxopt.runtime.worker import Worker
from tests.conformance.cases import (
    Case,
    judge,
    node_cases,
    runnable_case,
    stored_cases,
    with_constants,
)

#: The cases are judged in so many parts, so that a run shows that it goes on.
_PARTS = 8
#: Every so-manieth case goes the whole road, with files and a report.
_SAMPLE_STEP = 40


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(request_seconds=60) as started:
        yield started


def _faults(cases: list[Case], worker: Worker, least: int) -> dict[str, str]:
    verdicts = {case.name: judge(case, "exact", worker) for case in cases}
    compared = sum(verdict.compared for verdict in verdicts.values())
    assert compared >= least, f"only {compared} of {len(cases)} cases could be compared"
    return {name: verdict.fault for name, verdict in verdicts.items() if verdict.fault}


@pytest.mark.parametrize("part", range(_PARTS))
@pytest.mark.parametrize(
    ("fixed", "least"),
    [
        pytest.param(lambda case: case, 210, id="as-fed"),
        pytest.param(lambda case: with_constants(case, 1), 148, id="first-fed"),
        pytest.param(lambda case: with_constants(case, 0), 210, id="constant"),
    ],
)
def test_node_cases(
    fixed: Callable[[Case], Case | None], least: int, part: int, worker: Worker
) -> None:
    chosen = [fixed(case) for case in node_cases()[part::_PARTS]]
    assert _faults([case for case in chosen if case is not None], worker, least) == {}


@pytest.mark.parametrize(
    ("kind", "least"), [("simple", 17), ("pytorch-converted", 59), ("pytorch-operator", 24)]
)
def test_stored_cases(kind: str, least: int, worker: Worker) -> None:
    assert _faults(list(stored_cases(kind)), worker, least) == {}


@pytest.mark.parametrize("index", range(0, 1800, _SAMPLE_STEP))
def test_whole_road(index: int, tmp_path: pathlib.Path, worker: Worker) -> None:
    case = next(filter(_has_numeric_feeds, node_cases()[index:]))
    runnable = runnable_case(case, worker)
    if runnable is None or not judge(runnable, "", worker).compared:
        pytest.skip(f"{case.name} is random or ONNX Runtime cannot run it")
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(runnable.model.SerializeToString())
    (tmp_path / "feeds").mkdir()
    np.savez(tmp_path / "feeds" / "feed.npz", **runnable.feeds[0])
    report = onnxopt.optimize(source, target, data=tmp_path / "feeds", guard_speed=False)
    # On a few kilobytes, a name or a folded constant can be one byte too many; nothing else may.
    assert all("the file grows" in each.reason for each in report.undone), report.undone
    assert report.verified == report.changed
    onnx.checker.check_model(str(target))
    assert target.stat().st_size <= source.stat().st_size
    assert Interface.of(load(target)) == Interface.of(from_proto(runnable.model))


def _has_numeric_feeds(case: Case) -> bool:
    return all(
        isinstance(array, np.ndarray) and array.dtype.isbuiltin == 1 and not array.dtype.hasobject
        for array in case.feeds[0].values()
    )
