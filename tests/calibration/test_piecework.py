"""Observing by several workers gives what one gives, to the last bit."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import signal
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from onnxopt.calibration import Observations, Range, observe
from onnxopt.calibration.pieces import pieces
from onnxopt.calibration.piecework import get_ready
from onnxopt.data import Feed, FeedSource, Portable
from onnxopt.errors import CalibrationError, RuntimeRefusalError
from onnxopt.parallel import Crew
from onnxopt.parallel.cluster import Cluster
from onnxopt.parallel.processes import Processes
from onnxopt.samples import Samples, split
from tests.calibration.test_observe import REQUESTS, model

COUNT = 280


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Samples of several sizes whose sums depend on their order."""
    path = tmp_path_factory.mktemp("samples")
    generator = np.random.default_rng(5)
    for number in range(COUNT):
        shape = (1 + number % 2, 3, 8 + number % 7, 9)
        scale = np.float32(10.0 ** generator.uniform(-3, 3))
        np.savez(
            path / f"{number:03}.npz",
            image=generator.standard_normal(shape).astype(np.float32) * scale,
            vector=generator.standard_normal((shape[0], 6)).astype(np.float32) * scale,
        )
    return path


@pytest.fixture(scope="module", params=["processes", "dask"])
def crew(request: pytest.FixtureRequest) -> Iterator[Crew]:
    if request.param == "processes":
        with Processes(2) as started:
            yield started
        return
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        Cluster(cluster.scheduler_address) as started,
    ):
        assert started.size == 2
        yield started


@dataclasses.dataclass(frozen=True)
class _Deadly(Portable):
    """Samples of which one kills the process that reads it, the first time."""

    samples: Samples
    mark: pathlib.Path

    @property
    def seekable(self) -> bool:
        return True

    def count(self) -> int | None:
        return self.samples.count()

    def __iter__(self) -> Iterator[Feed]:
        return iter(self.samples)

    def at(self, positions: Iterable[int]) -> Iterator[Feed]:
        wanted = list(positions)
        for position, feed in zip(wanted, self.samples.at(wanted), strict=True):
            if position == COUNT // 2 and not self.mark.exists():
                self.mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield feed


def from_files(folder: pathlib.Path) -> Samples:
    return Samples(FeedSource(model(), folder).files)


def same_bits(one: Observations, other: Observations) -> bool:
    return bool(_content(one) == _content(other))


def _content(seen: Observations) -> Any:
    arrays = {
        (tensor, spec, name): (array.dtype, array.shape, array.tobytes())
        for tensor, observers in seen.observers.items()
        for spec, observer in observers.items()
        for name, array in observer.arrays().items()
    }
    return arrays, seen.samples, seen.digest, seen.fingerprints, seen.left_alone


def test_the_order_of_sums_matters_for_these_samples(folder: pathlib.Path) -> None:
    feeds = list(from_files(folder))
    assert not same_bits(observe(model(), feeds, REQUESTS), observe(model(), feeds[::-1], REQUESTS))


def test_two_workers_see_what_one_sees(folder: pathlib.Path, crew: Crew) -> None:
    samples = from_files(folder)
    assert samples.seekable
    alone = observe(model(), samples, REQUESTS)
    assert alone.samples == COUNT
    get_ready(crew)
    assert same_bits(observe(model(), samples, REQUESTS, crew=crew), alone)
    assert same_bits(observe(model(), list(samples), REQUESTS, crew=crew), alone)
    learn, _ = split(split(samples)[0])
    assert same_bits(
        observe(model(), learn, REQUESTS, crew=crew), observe(model(), list(learn), REQUESTS)
    )


def test_nothing_is_left_of_what_travelled_in_files(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    unlinked: list[str] = []
    unlink = pathlib.Path.unlink

    def noted(path: pathlib.Path) -> None:
        unlinked.append(path.parent.name)
        unlink(path)

    monkeypatch.setattr(pathlib.Path, "unlink", noted)
    with Processes(2) as crew:
        observe(model(), from_files(folder), REQUESTS, crew=crew)
    travelled = [name for name in unlinked if name.startswith("onnxopt-seen-")]
    assert len(travelled) == len(list(pieces(COUNT)))
    assert not list(tmp_path.glob("onnxopt-*"))


def test_a_worker_that_is_killed_half_way_changes_nothing(
    folder: pathlib.Path, crew: Crew, tmp_path: pathlib.Path
) -> None:
    samples = _Deadly(from_files(folder), tmp_path / "mark")
    seen = observe(model(), samples, REQUESTS, crew=crew)
    assert samples.mark.exists()
    assert same_bits(seen, observe(model(), list(samples), REQUESTS))


def test_the_first_sample_at_fault_is_named(folder: pathlib.Path, crew: Crew) -> None:
    feeds = list(from_files(folder))
    for number in (40, 210):
        feeds[number]["image"][0, 0, 0, 0] = np.nan
    with pytest.raises(CalibrationError, match=r"'shifted'.*NaN.*sample 41"):
        observe(model(), feeds, REQUESTS, crew=crew)
    left = [
        observe(model(), feeds, REQUESTS, crew=each, skip_unobservable=True)
        for each in (crew, *_nobody())
    ]
    assert "NaN" in left[0].left_alone["shifted"]
    assert same_bits(*left)
    feeds[20]["vector"] = feeds[20]["vector"][:, :3]
    with pytest.raises(RuntimeRefusalError, match="sample 21"):
        observe(model(), feeds, {"scores": [Range()]}, crew=crew)
    with pytest.raises(CalibrationError, match="no samples"):
        observe(model(), [], REQUESTS, crew=crew)


def _nobody() -> list[Crew]:
    from onnxopt.parallel import ALONE

    return [ALONE]


def test_it_says_how_far_it_is(folder: pathlib.Path) -> None:
    steps: list[str] = []
    observe(model(), from_files(folder), {"scores": [Range()]}, on_step=steps.append)
    assert steps[-1] == f"observing sample {COUNT} of {COUNT}"


def test_pieces_do_not_depend_on_how_many_samples_there_are() -> None:
    endless = list(itertools.islice(pieces(), 200))
    assert endless[0][0] == 0
    assert all(one[1] == two[0] for one, two in itertools.pairwise(endless))
    for count in (0, 1, 64, 65, 500, 5000):
        found = list(pieces(count))
        assert found[:-1] == endless[: max(0, len(found) - 1)]
        assert (found[-1][1] if found else 0) == count
    assert max(stop - start for start, stop in pieces(10_000_000)) == 1024
