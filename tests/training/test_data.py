"""Samples, batches, the store and loaders."""

import pathlib
from typing import Any

import numpy as np
import pytest
import torch

from onnxopt.errors import FeedError, OptionError
from onnxopt.training.cache import TeacherOutputs
from onnxopt.training.data import TrainingData, find_stacking
from onnxopt.training.distiller import Distiller
from onnxopt.training.feeders import LoaderFeeder, SampleFeeder
from onnxopt.training.parallel import Processes
from onnxopt.training.settings import TrainingSettings
from onnxopt.training.store import SampleStore
from onnxopt.training.teacher import CallableTeacher
from tests.training import small

RNG = np.random.default_rng(0)


def test_what_does_not_fit_in_memory_comes_from_a_file() -> None:
    arrays = [
        {"x": RNG.normal(size=(number + 1, 5)), "id": np.array(number)} for number in range(40)
    ]
    store = SampleStore(memory_bytes=1000)
    for each in arrays:
        store.append(each)
    assert store.bytes_in_memory <= 1000
    for number in (39, 0, 20, 1):
        np.testing.assert_array_equal(store[number]["x"], arrays[number]["x"])
        assert store[number]["id"] == number


def test_one_in_ten_is_held_out_and_never_trained_on() -> None:
    data = small.samples(205)
    training, held_out = data.split()
    assert sorted(training + held_out) == list(range(205))
    assert len(held_out) == 20
    feeder = SampleFeeder(data, 16, 0, Processes())
    seen = [
        number for step in range(11) for batch in feeder.step(step)[0] for number in batch.samples
    ]
    assert len(set(seen)) == len(seen) == 176
    assert not set(seen) & set(held_out)
    assert sorted(n for batch in feeder.held_out() for n in batch.samples) == held_out


def test_few_samples_are_all_of_them() -> None:
    assert small.samples(5).split() == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])


def teacher(function: Any) -> CallableTeacher:
    return CallableTeacher(lambda feed: {"y": function(feed["x"])})


def stacking(function: Any, shape: tuple[int, ...] = (1, 3, 4)) -> Any:
    first, second = ({"x": RNG.normal(size=shape)} for _ in range(2))
    return find_stacking(teacher(function), first, second)


def test_stacking_is_found_by_running() -> None:
    assert stacking(lambda x: x * 2).axes == {"y": 0}
    assert stacking(lambda x: x.transpose(1, 0, 2)).axes == {"y": 1}  # steps first, then the batch
    assert stacking(lambda x: x - x.mean(axis=0)) is None  # samples depend on one another
    assert stacking(lambda x: x.sum(axis=0)) is None  # nothing grows

    def one_only(x: Any) -> Any:
        if len(x) != 1:
            raise FeedError("a batch of one")
        return x

    assert stacking(one_only) is None


def test_outputs_are_remembered_by_sample_whatever_the_axis() -> None:
    data = TrainingData.of({"x": RNG.normal(size=(1, 3, 4))} for _ in range(30))
    moved = teacher(lambda x: x.transpose(1, 0, 2))
    data.stacking = find_stacking(moved, data.feed(0), data.feed(1))
    outputs = TeacherOutputs(moved, data)
    (batch,) = data.batches([7, 29, 3])
    np.testing.assert_array_equal(outputs.of(batch)["y"], moved.outputs(batch.feed)["y"])
    before = outputs.computed
    outputs.of(data.batches([3, 4])[0])
    assert outputs.computed == before


def loader(labels: bool) -> list[Any]:
    batches = []
    for _ in range(6):
        x = RNG.normal(size=(32, small.WIDTH)).astype(np.float32)
        y = small.teacher().outputs({"x": x})["logits"].argmax(axis=1)
        batches.append(
            (torch.from_numpy(x), torch.from_numpy(y)) if labels else torch.from_numpy(x)
        )
    return batches


@pytest.mark.parametrize("labels", [False, True])
def test_the_users_own_loader_and_module(labels: bool) -> None:
    feeder = LoaderFeeder(loader(labels), loader(labels)[:1], ["x"], labels=labels)
    objective = small.objective(small.samples(labels=labels))
    student = small.student()
    settings = TrainingSettings(epochs=20, evaluations=4, learning_rate=0.05, patience=0)
    result = Distiller(student, small.teacher(), feeder, objective, settings).run()
    assert result.steps == 120
    assert result.best.score.loss < result.before.score.loss / 2


def test_a_loader_goes_on_where_it_was() -> None:
    batches = loader(False)
    feeder = LoaderFeeder(batches, [], ["x"])
    feeder.step(0)
    np.testing.assert_array_equal(feeder.step(8)[0][0].feed["x"], batches[2].numpy())
    np.testing.assert_array_equal(feeder.step(9)[0][0].feed["x"], batches[3].numpy())


def test_loaders_that_give_something_else() -> None:
    with pytest.raises(FeedError, match="no batches"):
        LoaderFeeder([], [], ["x"])
    with pytest.raises(OptionError, match="no length"):
        LoaderFeeder(iter([1]), [], ["x"])
    with pytest.raises(FeedError, match="has 2 parts, not 1"):
        LoaderFeeder(loader(True), [], ["x"]).step(0)
    with pytest.raises(FeedError, match="a batch of the loader has no x, label"):
        LoaderFeeder([{"y": torch.zeros(1)}], [], ["x"], labels="label").step(0)
    short = LoaderFeeder(loader(False)[:1], [], ["x"], steps_per_epoch=3)
    short.step(0)
    with pytest.raises(FeedError, match="ended after 1 of 3"):
        short.step(1)


def test_labels_and_samples_are_as_many(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FeedError, match="3 labels for 2 samples"):
        TrainingData.of([{"x": np.zeros(1)}] * 2, [0, 1, 2])
    with pytest.raises(FeedError, match="no sample to train on"):
        TrainingData.of([])
