"""What many models answer to the same few feeds, asked by one worker or by several at once."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.parallel import Alone, Crew
from onnxopt.runtime.worker import Worker, shared_worker

__all__ = ["outputs_of_all"]

Feed = dict[str, Any]
Outputs = list[list[Any]]


@dataclasses.dataclass(frozen=True)
class _Trial:
    """A job: the model, as it travels, what to ask it, and with how many threads."""

    model: pathlib.Path | bytes
    feeds: Sequence[Feed]
    threads: int


def outputs_of_all(
    crew: Crew,
    worker: Worker,
    models: Iterable[contextlib.AbstractContextManager[pathlib.Path]],
    feeds: Sequence[Feed],
    *,
    threads: int = 1,
) -> Iterator[Outputs | None]:
    """All outputs of each model for each feed, in order; None for a model that does not run.

    Args:
        crew: Who runs them.
        worker: Where to run them, if the crew is this process alone.
        models: The models. They are made here, as they are needed, and gone once they have run.
        feeds: Inputs.
        threads: Threads for one operator.

    Raises:
        WorkerLostError: When workers of the crew are lost again and again.
    """
    if isinstance(crew, Alone):
        for model in models:
            with model as path:
                yield _outputs(worker, _Trial(path, feeds, threads))
        return
    with contextlib.ExitStack() as all_made:
        made: collections.deque[contextlib.ExitStack] = collections.deque()

        def jobs() -> Iterator[_Trial]:
            for model in models:
                stack = all_made.enter_context(contextlib.ExitStack())
                made.append(stack)
                yield _Trial(crew.parcel(stack.enter_context(model)), feeds, threads)

        for outputs in crew.map(_run, jobs()):
            made.popleft().close()
            yield outputs


def _run(model: pathlib.Path | bytes | None, trial: _Trial) -> Outputs | None:
    """Do a job, in a process of the crew."""
    del model
    return _outputs(shared_worker(f"crew {threading.get_ident()}"), trial)


def _outputs(worker: Worker, trial: _Trial) -> Outputs | None:
    try:
        info = worker.open(trial.model, threads=trial.threads)
        generation = worker.generation
        try:
            return [worker.run(info.session, feed) for feed in trial.feeds]
        finally:
            if worker.generation == generation:
                worker.close(info.session)
    except (RuntimeRefusalError, RuntimeCrashError):
        return None
