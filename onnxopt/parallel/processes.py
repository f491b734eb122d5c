"""A crew of processes on this machine."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pathlib
from typing import TypeVar

from onnxopt.parallel.crew import ExecutorCrew, Function

__all__ = ["Processes"]

J = TypeVar("J")
R = TypeVar("R")

#: Variables that say how many threads numeric libraries use; read when these are loaded.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Processes(ExecutorCrew):
    """Processes that are spawned when they are to prepare themselves, or when jobs come.

    They are spawned, not forked: this process has threads. Numeric libraries use one thread in
    each, and models as many as jobs say.

    Args:
        workers: How many.
    """

    is_here = True

    def __init__(self, workers: int) -> None:
        self.size = workers
        self._pool = self._new_pool()

    def _new_pool(self) -> concurrent.futures.ProcessPoolExecutor:
        return concurrent.futures.ProcessPoolExecutor(
            self.size, multiprocessing.get_context("spawn"), _bound_threads
        )

    def submit(  # noqa: D102
        self, function: Function[J, R], model: pathlib.Path | None, job: J
    ) -> concurrent.futures.Future[R]:
        return self._pool.submit(function, model, job)

    def prepare(self, function: Function[None, None]) -> None:  # noqa: D102
        for _ in range(self.size):  # a process for each, since none of them is idle yet
            self._pool.submit(function, None, None)

    def is_loss(self, error: BaseException) -> bool:  # noqa: D102
        return isinstance(error, concurrent.futures.BrokenExecutor)

    def renew(self) -> None:
        """Start a new pool in place of a broken one; one that is whole stays."""
        try:
            self._pool.submit(os.getpid).result()
        except concurrent.futures.BrokenExecutor:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = self._new_pool()

    def close(self) -> None:  # noqa: D102
        self._pool.shutdown(wait=True, cancel_futures=True)


def _bound_threads() -> None:
    for name in _THREAD_VARIABLES:
        os.environ.setdefault(name, "1")
