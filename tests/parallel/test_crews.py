"""Crews: results in order, lost workers, work that kills workers."""

from __future__ import annotations

import os
import pathlib
import signal
import time
from collections.abc import Iterator

import pytest

from onnxopt.errors import OptionError, WorkerLostError
from onnxopt.parallel import ALONE, Crew, open_crew
from onnxopt.parallel.crew import Lost
from onnxopt.parallel.processes import Processes


@pytest.fixture(scope="module")
def pool() -> Iterator[Crew]:
    with Processes(2) as crew:
        yield crew


def square(model: object, job: int) -> int:
    assert model is None
    return job * job


def fail(model: object, job: int) -> int:
    del model
    raise ValueError(f"job {job}")


def die_once(model: object, job: tuple[int, pathlib.Path]) -> int:
    """Kills the process that does job 3, the first time."""
    del model
    number, mark = job
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_always(model: object, job: int) -> int:
    del model
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def test_results_come_in_the_order_of_the_jobs(pool: Crew) -> None:
    expected = [number * number for number in range(9)]
    assert list(pool.map(square, range(9))) == list(ALONE.map(square, range(9))) == expected
    assert list(pool.map(square, [])) == []


def test_jobs_are_taken_as_they_are_needed(pool: Crew) -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = pool.map(square, jobs())
    assert next(results) == 0
    assert len(taken) <= 2 * pool.size + 1


def test_what_a_job_raises_is_raised_where_its_result_would_come(pool: Crew) -> None:
    with pytest.raises(ValueError, match="job 7"):
        next(pool.map(fail, [7, 8]))
    assert list(pool.map(square, [2])) == [4]


def test_a_lost_worker_is_replaced(pool: Crew, tmp_path: pathlib.Path) -> None:
    mark = tmp_path / "mark"
    assert list(pool.map(die_once, [(number, mark) for number in range(8)])) == list(range(8))
    assert mark.exists()
    assert list(pool.map(square, [3])) == [9]


def test_work_that_kills_its_worker_is_given_up_and_the_rest_is_done(pool: Crew) -> None:
    outcomes = list(pool.outcomes(die_always, range(5)))
    lost = outcomes.pop(2)
    assert outcomes == [0, 1, 3, 4]
    assert isinstance(lost, Lost)
    assert lost.job == 2
    with pytest.raises(WorkerLostError, match="lost 3 times at the same work"):
        list(pool.map(die_always, range(5)))


def leave_a_mark(model: object, job: None) -> None:
    assert model is None
    assert job is None
    pathlib.Path(os.environ["ONNXOPT_TEST_MARKS"], str(os.getpid())).touch()
    time.sleep(0.1)  # for another to begin meanwhile


def test_workers_prepare_themselves(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXOPT_TEST_MARKS", str(tmp_path))
    with Processes(2) as crew:
        crew.prepare(leave_a_mark)
        assert list(crew.map(square, range(3))) == [0, 1, 4]
    assert len(list(tmp_path.iterdir())) in (1, 2)  # one may be cancelled
    ALONE.prepare(leave_a_mark)


def test_opening() -> None:
    assert open_crew() is ALONE
    with open_crew(3) as crew:
        assert crew.size == 3
    with pytest.raises(OptionError, match="not both"):
        open_crew(2, "tcp://127.0.0.1:1")
