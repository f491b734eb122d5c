"""What a crew is, and the one that is nobody but this process."""

from __future__ import annotations

import abc
import collections
import concurrent.futures
import pathlib
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from onnxopt.errors import WorkerLostError

__all__ = ["ALONE", "Alone", "Crew", "ExecutorCrew", "Function", "Lost"]

J = TypeVar("J")
R = TypeVar("R")

#: What does a job: a function of a module, of the shared model (its path or its bytes) and the job.
Function = Callable[[pathlib.Path | bytes | None, J], R]

#: A job is begun so many times before it is held to be what kills the workers.
_MOST_ATTEMPTS = 3
#: So many jobs for each worker are under way before the first result is taken: no worker has to
#: wait for the next one, and results that nobody has taken yet stay few.
_AHEAD = 2


class Lost(Generic[J]):
    """Stands for the result of a job whose workers were lost again and again.

    Args:
        job: The job.
        error: What is known.
    """

    def __init__(self, job: J, error: WorkerLostError) -> None:
        self.job, self.error = job, error


class Crew(abc.ABC):
    """Those who do jobs.

    Attributes:
        size: How many jobs are done at once.
        is_here: Whether they all work on this machine, with its files.
    """

    size: int = 1
    is_here: bool = False

    def map(
        self, function: Function[J, R], jobs: Iterable[J], *, model: pathlib.Path | None = None
    ) -> Iterator[R]:
        """Results in the order of the jobs, which are taken as they are needed.

        Args:
            function: What does a job. It may do one more than once, which must not matter.
            jobs: The jobs.
            model: A file that all of them need.

        Raises:
            WorkerLostError: When the workers that do a job are lost again and again.
        """
        for result in self.outcomes(function, jobs, model=model):
            if isinstance(result, Lost):
                raise result.error
            yield result

    @abc.abstractmethod
    def outcomes(
        self, function: Function[J, R], jobs: Iterable[J], *, model: pathlib.Path | None = None
    ) -> Iterator[R | Lost[J]]:
        """Like `map`, but a job that is lost does not end the others."""

    def prepare(self, function: Function[None, None]) -> None:  # noqa: B027 - may be in vain
        """Have each worker call a function before there are jobs, where it takes time to begin.

        Nobody waits for it, nor is told when it fails.
        """

    def parcel(self, model: pathlib.Path) -> pathlib.Path | bytes:
        """A model as it travels in a job, to be loaded by a worker."""
        return model

    def close(self) -> None:  # noqa: B027 - there may be nothing to do
        """Let the workers go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Alone(Crew):
    """This process does all jobs itself, one by one."""

    def outcomes(  # noqa: D102
        self, function: Function[J, R], jobs: Iterable[J], *, model: pathlib.Path | None = None
    ) -> Iterator[R | Lost[J]]:
        for job in jobs:
            yield function(model, job)


#: Has no state, so one is enough.
ALONE = Alone()


class ExecutorCrew(Crew):
    """Workers behind a `concurrent.futures.Executor`."""

    @abc.abstractmethod
    def submit(
        self, function: Function[J, R], model: pathlib.Path | None, job: J
    ) -> concurrent.futures.Future[R]:
        """Have a job done."""

    @abc.abstractmethod
    def is_loss(self, error: BaseException) -> bool:
        """Whether an error says that a worker was lost, and nothing about the job."""

    @abc.abstractmethod
    def renew(self) -> None:
        """Have workers again after one was lost."""

    def outcomes(  # noqa: D102
        self, function: Function[J, R], jobs: Iterable[J], *, model: pathlib.Path | None = None
    ) -> Iterator[R | Lost[J]]:
        waiting: collections.deque[tuple[J, concurrent.futures.Future[R]]] = collections.deque()
        coming = iter(jobs)
        try:
            while True:
                while len(waiting) < _AHEAD * self.size:
                    try:
                        job = next(coming)
                    except StopIteration:
                        break
                    waiting.append((job, self._started(function, model, job)))
                if not waiting:
                    return
                yield self._result(function, model, *waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()

    def _started(
        self, function: Function[J, R], model: pathlib.Path | None, job: J
    ) -> concurrent.futures.Future[R]:
        """Begin a job; workers that were lost unnoticed are replaced."""
        try:
            return self.submit(function, model, job)
        except Exception as error:
            if not self.is_loss(error):
                raise
            self.renew()
            return self.submit(function, model, job)

    def _result(
        self,
        function: Function[J, R],
        model: pathlib.Path | None,
        job: J,
        future: concurrent.futures.Future[Any],
    ) -> R | Lost[J]:
        """Wait for a job. Of those that were under way when a worker was lost each is begun again
        when its turn comes, so one that kills its worker takes no other with it twice.
        """
        for attempt in range(1, _MOST_ATTEMPTS + 1):
            try:
                result: R = future.result()
                return result
            except (Exception, concurrent.futures.CancelledError) as error:
                if not self.is_loss(error):
                    raise
                if attempt < _MOST_ATTEMPTS:
                    self.renew()
                    future = self.submit(function, model, job)
        text = f"the worker process was lost {_MOST_ATTEMPTS} times at the same work"
        hint = "is there enough memory, and a script's work below if __name__ == '__main__'?"
        return Lost(job, WorkerLostError(f"{text}: {hint}"))
