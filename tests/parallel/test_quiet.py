"""Nobody works on the machine while somebody times."""

from __future__ import annotations

import itertools
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from onnxopt.parallel.processes import Processes
from onnxopt.parallel.quiet import let_others_time, quiet, share_machine, waiting, working

Span = tuple[float, float]


def live(model: object, job: tuple[pathlib.Path, bool]) -> list[Span]:
    """Work, or time, in a process of its own; gives when it did so."""
    del model
    path, times = job
    share_machine(path)
    spans: list[Span] = []
    with working():
        for _ in range(12):
            if times:
                time.sleep(0.005)
                with quiet(), quiet():
                    spans.append(_a_moment())
            else:
                spans.append(_a_moment())
                let_others_time()
    share_machine(None)
    return spans


def _a_moment() -> Span:
    start = time.monotonic()
    time.sleep(0.01)
    return start, time.monotonic()


def test_work_and_timing_do_not_overlap(tmp_path: pathlib.Path) -> None:
    jobs = [(tmp_path / "shared", times) for times in (False, True, False, True)]
    with Processes(4) as crew:
        found = list(crew.map(live, jobs))
    timed = [found[1], found[3]]
    others = [found[:1] + found[2:], found[:3]]
    for spans, rest in zip(timed, others, strict=True):
        for (start, end), (begun, ended) in itertools.product(spans, itertools.chain(*rest)):
            assert ended <= start or end <= begun


def die_while_timing(model: object, job: tuple[pathlib.Path, pathlib.Path]) -> bool:
    del model
    path, mark = job
    share_machine(path)
    with working(), quiet():
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return True


def test_whoever_dies_while_timing_keeps_nobody_waiting(tmp_path: pathlib.Path) -> None:
    with Processes(2) as crew:
        jobs = [(tmp_path / "shared", tmp_path / "mark")] * 3
        assert list(crew.map(die_while_timing, jobs)) == [True] * 3


@pytest.fixture
def shared(tmp_path: pathlib.Path) -> Iterator[None]:
    share_machine(tmp_path / "shared")
    yield
    share_machine(None)


@pytest.mark.usefixtures("shared")
def test_a_thread_may_time_while_another_waits_for_it() -> None:
    done: list[int] = []

    def measure() -> None:
        with working(), quiet():
            done.append(1)

    with working():
        thread = threading.Thread(target=measure)
        thread.start()
        with waiting():
            thread.join(20)
    assert done == [1]


def test_a_process_alone_locks_nothing() -> None:
    with working(), quiet(), waiting():
        let_others_time()
