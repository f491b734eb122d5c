"""The child process: its death, and what an interruption leaves behind."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.runtime.worker import Worker
from tests.differential import parse


def doubling(factor: float = 2) -> bytes:
    text = f"g (float[n] x) => (float[n] y) <float[1] s = {{{factor}}}> {{ y = Mul(x, s) }}"
    message: bytes = parse(text).SerializeToString()
    return message


FEED = {"x": np.ones(2, np.float32)}


def test_child_that_dies_at_once_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Worker() as worker, pytest.raises(RuntimeCrashError, match="did not start"):
        worker.peak_memory()


def test_interrupted_request_does_not_answer_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with Worker() as worker:
        assert worker.evaluate(doubling(), FEED)[0].tolist() == [2, 2]

        def interrupted(self: Connection, *_: Any) -> bool:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Connection, "poll", interrupted)
            with pytest.raises(KeyboardInterrupt):
                worker.evaluate(doubling(3), FEED)
        assert worker.evaluate(doubling(4), FEED)[0].tolist() == [4, 4]


def test_killed_child_is_a_crash_and_the_next_request_starts_another() -> None:
    with Worker() as worker:
        info = worker.open(doubling())
        generation = worker.generation
        worker.interrupt()
        assert worker._process is not None
        worker._process.wait()
        with pytest.raises(RuntimeRefusalError):
            worker.run(info.session, FEED)
        assert worker.generation == generation + 1


def test_peak_memory_is_the_childs_own() -> None:
    ballast = np.ones(64 * 2**20, np.uint8)
    with Worker() as worker:
        first = worker.peak_memory()
    del ballast
    with Worker() as worker:
        assert abs(worker.peak_memory() - first) < 16 * 2**20
