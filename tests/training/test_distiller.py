import dataclasses
import math
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from onnxopt.errors import OptionError
from onnxopt.training.data import Batch, TrainingData
from onnxopt.training.distiller import Distiller, InterruptedTrainingError, Progress
from onnxopt.training.learning_rate import USUAL_RATE
from onnxopt.training.masks import n_m_pattern
from onnxopt.training.schedules import PruningSchedule, keep_largest
from onnxopt.training.settings import TrainingSettings
from tests.training import small

FAST = TrainingSettings(steps=120, batch_size=16, evaluations=6, learning_rate=0.1, threads=1)


def weights(module: Any) -> dict[str, Any]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def distiller(
    student: Any = None,
    data: TrainingData | None = None,
    settings: TrainingSettings = FAST,
    **options: Any,
) -> Distiller:
    data = data or small.samples()
    return Distiller(
        student or small.student(),
        small.teacher(),
        data,
        options.pop("objective", None) or small.objective(data),
        settings,
        **options,
    )


def test_a_student_learns_from_its_teacher() -> None:
    made = distiller()
    result = made.run()
    assert result.before.step == 0
    assert result.best.score.agreement["logits"] > result.before.score.agreement["logits"] + 0.2
    assert result.best.score.loss < result.before.score.loss / 3
    assert result.steps == FAST.steps
    assert not result.failed


def test_the_student_has_the_best_weights_afterwards() -> None:
    made = distiller()
    result = made.run()
    assert made._stepper.score() == result.best.score
    assert all(not each.score.is_better_than(result.best.score) for each in result.history)


def test_a_training_that_only_harms_gives_the_student_back() -> None:
    student = small.student()
    distiller(student).run()
    good = weights(student)
    harmful = TrainingSettings(steps=8, batch_size=16, learning_rate=5.0, evaluations=4)
    result = distiller(student, settings=harmful).run()
    assert result.best.step == 0
    assert same(good, weights(student))


def test_a_seed_fixes_every_bit() -> None:
    one, other, third = (small.student(dropout=0.2) for _ in range(3))
    distiller(one).run()
    distiller(other).run()
    assert same(weights(one), weights(other))
    changed = TrainingSettings(**{**vars(FAST), "seed": 1})
    distiller(third, settings=changed).run()
    assert not same(weights(one), weights(third))


@pytest.mark.parametrize("stop_at", [1, 10, 33])
def test_an_interrupted_training_goes_on_bit_by_bit(tmp_path: pathlib.Path, stop_at: int) -> None:
    whole = small.student(dropout=0.2)
    expected = distiller(whole).run()

    def stop(progress: Progress) -> None:
        if progress.step == stop_at:
            signal.raise_signal(signal.SIGINT)

    file = tmp_path / "state"
    with pytest.raises(InterruptedTrainingError, match="the same command goes on"):
        distiller(small.student(dropout=0.2), checkpoint=file, on_progress=stop).run()
    assert file.exists()
    resumed = small.student(dropout=0.2)
    training = distiller(resumed, checkpoint=file)
    result = training.run()
    assert result.resumed_at == stop_at + 1  # the wish is heard after the next step
    assert same(weights(whole), weights(resumed))
    assert result.best == expected.best
    again = distiller(small.student(dropout=0.2), checkpoint=file).run()
    assert (again.resumed_at, again.best) == (result.steps, result.best)  # nothing is trained twice
    training.forget()
    assert not file.exists()


def test_a_checkpoint_of_another_training_is_not_used(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "state"

    def stop(progress: Progress) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedTrainingError):
        distiller(checkpoint=file, on_progress=stop, mark="one").run()
    assert distiller(checkpoint=file, mark="other").run().resumed_at is None


def test_ctrl_c_works_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    distiller(settings=TrainingSettings(steps=2, batch_size=16)).run()
    assert signal.getsignal(signal.SIGINT) is before


def test_zeros_stay_zero_and_n_m_stays_n_m() -> None:
    student = small.student()
    weight = student.module[0].weight
    keep = keep_largest({"w": weight}, 0.0, (1, 2))["w"]
    with torch.no_grad():
        weight.masked_fill_(~keep, 0.0)
    before = weight.detach().clone()
    distiller(student).run()
    assert n_m_pattern(weight, 1, 2)
    assert torch.equal(weight == 0, before == 0)
    assert not torch.signbit(weight[weight == 0]).any()
    assert not torch.equal(weight, before)


def test_zeros_may_be_let_go() -> None:
    student = small.student()
    with torch.no_grad():
        student.module[0].weight[:, 0] = 0.0
    distiller(student, settings=TrainingSettings(**{**vars(FAST), "keep_zeros": False})).run()
    assert bool((student.module[0].weight[:, 0] != 0).all())


@pytest.mark.parametrize("kind", ["one-shot", "iterative", "gradual"])
def test_pruning_reaches_its_sparsity_and_the_best_student_has_it(kind: Any) -> None:
    student = small.student()
    schedule = PruningSchedule(kind, 0.5, every=5)
    result = distiller(student, pruning=schedule).run()
    for layer in (student.module[0], student.module[3]):
        share = float((layer.weight == 0).float().mean())
        assert share == pytest.approx(0.5, abs=0.5 / layer.weight.numel() + 1e-6)
    assert result.best.sparsity == pytest.approx(0.5, abs=0.02)
    assert result.best.step >= (0 if kind == "one-shot" else 30)


def test_early_stop() -> None:
    settings = TrainingSettings(
        steps=1000, batch_size=16, evaluations=100, patience=3, learning_rate=1e-9
    )
    result = distiller(settings=settings).run()
    assert result.steps < 1000
    assert "nothing better in 3 evaluations" in result.stopped
    assert not result.failed


def test_a_penalty_counts_once_however_many_shapes_a_step_has() -> None:
    plain, penalized = small.student(), small.student()
    distiller(plain).run()
    distiller(
        penalized, penalty=lambda: 0.3 * sum(p.abs().sum() for p in penalized.parameters())
    ).run()
    total = {
        name: sum(float(p.detach().abs().sum()) for p in s.parameters())
        for name, s in (("plain", plain), ("penalized", penalized))
    }
    assert total["penalized"] < 0.8 * total["plain"]


def test_labels_alone_do_not_need_the_teacher() -> None:
    data = small.samples(labels=True)
    made = distiller(data=data, objective=small.objective(data, label_weight=1.0))
    result = made.run()
    assert result.best.score.main > result.before.score.main + 0.2
    assert result.best.score.accuracy == result.best.score.main
    assert result.teacher_samples == 0
    assert result.best.score.agreement == {}


def test_the_teacher_is_asked_once_for_each_sample() -> None:
    data = small.samples()
    made = distiller(data=data)
    assert (
        made.run().teacher_samples <= len(data) + 16 + 20
    )  # 16 to see whether they fit, 20 held out


def test_what_does_not_fit_in_memory_is_computed_again() -> None:
    settings = TrainingSettings(**{**vars(FAST), "cache_bytes": 500})
    student, other = small.student(), small.student()
    result = distiller(student, settings=settings).run()
    assert result.teacher_samples > 400
    distiller(other).run()
    for one, two in zip(student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_augmented_feeds_go_to_the_teacher_too() -> None:
    calls: list[int] = []
    data = small.samples()

    def augment(batch: Batch, generator: np.random.Generator) -> Batch:
        noise = np.float32(generator.normal(size=batch.feed["x"].shape))
        return Batch({"x": batch.feed["x"] + noise}, batch.samples, batch.labels)

    made = Distiller(
        small.student(), small.teacher(calls), data, small.objective(data), FAST, augment=augment
    )
    made.run()
    assert calls.count(16) >= 60


def test_nan_in_the_data_stops_and_says_where() -> None:
    data = small.samples(40)
    data.feed(17)["x"][0, 2] = np.nan
    student = small.student()
    before = weights(student)
    result = distiller(student, data=data, objective=small.objective(small.samples())).run()
    assert result.failed
    assert "input 'x' holds NaN or infinity" in result.stopped
    assert "at step" in result.stopped
    assert all(bool(torch.isfinite(each).all()) for each in weights(student).values())
    assert result.best.step > 0 or same(before, weights(student))


def test_a_loss_that_becomes_nan_stops_keeps_the_best_and_says_where() -> None:
    data = small.samples(labels=True)
    made = small.objective(data)
    calls: list[int] = []

    def own(outputs: Mapping[str, Any], labels: Any) -> Any:
        calls.append(1)
        factor = math.nan if len(calls) > 40 else 1.0
        return factor * torch.nn.functional.cross_entropy(outputs["logits"], labels)

    assert made.task is not None
    made.task = dataclasses.replace(made.task, kind="own", function=own)
    student = small.student()
    result = distiller(student, data=data, objective=made).run()
    assert result.failed
    assert "the loss of logits (labels, own) became nan" in result.stopped
    assert result.best.step > 0
    assert all(bool(torch.isfinite(each).all()) for each in weights(student).values())


def test_gradients_that_become_infinite_name_the_parameter() -> None:
    class Root(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(small.WIDTH, small.CLASSES)

        def forward(self, feed: Any) -> dict[str, Any]:
            zero = (self.layer.bias - self.layer.bias.detach()).abs().sqrt()
            return {"logits": self.layer(feed["x"]) + zero}

    result = distiller(Root()).run()
    assert result.failed
    assert "the gradient became NaN or infinite in 'layer.bias' at step 1" in result.stopped


def test_samples_of_several_shapes_share_a_step() -> None:
    generator = np.random.default_rng(0)
    feeds = [
        {"x": generator.normal(size=(1, 3 + number % 3, small.WIDTH)).astype(np.float32)}
        for number in range(60)
    ]
    data = TrainingData.of(feeds)
    data.stacking = small.samples().stacking
    batches = data.batches(range(12))
    assert [batch.feed["x"].shape for batch in batches] == [
        (4, 3, small.WIDTH),
        (4, 4, small.WIDTH),
        (4, 5, small.WIDTH),
    ]
    assert sorted(number for batch in batches for number in batch.samples) == list(range(12))
    result = distiller(data=data, objective=small.objective(data)).run()
    assert result.best.score.loss < result.before.score.loss / 2


def test_without_parameters_there_is_nothing_to_train() -> None:
    with pytest.raises(OptionError, match="no parameters that can be trained"):
        distiller(torch.nn.Identity())


_WORKER = """
import sys, torch
from onnxopt.training.distiller import Distiller
from onnxopt.training.parallel import joined_processes
from onnxopt.training.settings import TrainingSettings
from tests.training import small

with joined_processes() as processes:
    assert processes.count == int(sys.argv[2])
    data, student = small.samples(), small.student()
    settings = TrainingSettings(steps=30, batch_size=16, evaluations=3, learning_rate=0.05,
                                threads=1)
    made = Distiller(student, small.teacher(), data, small.objective(data), settings,
                     processes=processes)
    result = made.run()
    print(processes.rank, result.best.step)
    torch.save(student.state_dict(), f"{sys.argv[1]}.{processes.rank}")
"""


def run_worker(text: str, processes: int, folder: pathlib.Path, *arguments: str) -> None:
    script = folder / "worker.py"
    script.write_text(text)
    root = pathlib.Path(__file__).parents[2]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), str(script), *arguments],
        check=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        cwd=root,
        timeout=300,
        capture_output=True,
    )


def test_two_processes_train_as_one_does(tmp_path: pathlib.Path) -> None:
    run_worker(_WORKER, 2, tmp_path, str(tmp_path / "two"), "2")
    run_worker(_WORKER, 1, tmp_path, str(tmp_path / "one"), "1")
    one = torch.load(tmp_path / "one.0")
    ranks = [torch.load(tmp_path / f"two.{rank}") for rank in (0, 1)]
    for name, value in one.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-3, atol=1e-4)
    assert not same(one, small.student().state_dict())


_TRYING_WORKER = """
import sys, torch
from onnxopt.training.distiller import Distiller
from onnxopt.training.parallel import joined_processes
from onnxopt.training.settings import TrainingSettings
from tests.training import small

with joined_processes() as processes:
    told = []
    for bad in (False, True):
        data = small.samples()
        objective = small.objective(data)
        if bad:
            data.feed(17)["x"][0, 2] = float("nan")
        settings = TrainingSettings(steps=120, batch_size=16, evaluations=3, threads=1)
        made = Distiller(small.student(), small.teacher(), data, objective, settings,
                         processes=processes)
        result = made.run()
        told.append((result.failed, result.stopped, [vars(each) for each in result.rate_trials]))
    torch.save(told, f"{sys.argv[1]}.{processes.rank}")
"""


def test_two_processes_try_the_same_rates_and_stop_together(tmp_path: pathlib.Path) -> None:
    run_worker(_TRYING_WORKER, 2, tmp_path, str(tmp_path / "told"))
    (good, bad), (other_good, other_bad) = (
        torch.load(tmp_path / f"told.{rank}", weights_only=False) for rank in (0, 1)
    )
    assert good == other_good
    assert len(good[2]) >= 3
    assert not good[0]
    assert bad[0]
    assert other_bad[0]
    both = (bad[1], other_bad[1])
    assert any("input 'x' holds NaN or infinity in samples" in each for each in both)
    assert any("loss of another process is no longer finite" in each for each in both)


BY_TRIAL = TrainingSettings(steps=200, batch_size=16, evaluations=4, threads=1)


def test_the_learning_rate_is_chosen_by_trial_and_another_one_for_another_net() -> None:
    far = distiller(settings=BY_TRIAL).run()
    near = small.student()
    distiller(near, settings=dataclasses.replace(BY_TRIAL, steps=600, learning_rate=0.1)).run()
    fine = distiller(near, settings=BY_TRIAL).run()
    for result in (far, fine):
        losses = {trial.rate: trial.loss for trial in result.rate_trials}
        assert len(losses) >= 3
        assert losses[result.peak_learning_rate] == min(losses.values())
    assert far.peak_learning_rate > fine.peak_learning_rate
    assert far.best.score.loss < far.before.score.loss / 3


def test_trials_leave_no_trace_and_are_deterministic() -> None:
    chosen, given, again = (small.student(dropout=0.2) for _ in range(3))
    result = distiller(chosen, settings=BY_TRIAL).run()
    rate = result.peak_learning_rate
    alone = distiller(given, settings=dataclasses.replace(BY_TRIAL, learning_rate=rate)).run()
    assert alone.rate_trials == []
    assert same(weights(chosen), weights(given))
    assert distiller(again, settings=BY_TRIAL).run().rate_trials == result.rate_trials


@pytest.mark.parametrize("calls", [3, 14, 40])
def test_interrupted_trials_go_on(tmp_path: pathlib.Path, calls: int) -> None:
    whole, resumed = small.student(dropout=0.2), small.student(dropout=0.2)
    expected = distiller(whole, settings=BY_TRIAL).run()
    seen: list[str] = []

    def stop(progress: Progress) -> None:
        seen.append(progress.text)
        if len(seen) == calls:
            signal.raise_signal(signal.SIGINT)

    file = tmp_path / "state"
    with pytest.raises(InterruptedTrainingError, match="the same command goes on"):
        distiller(
            small.student(dropout=0.2), settings=BY_TRIAL, checkpoint=file, on_progress=stop
        ).run()
    assert seen[0].startswith("trying a learning rate of 0.003: step 1 of 10, loss")
    texts: list[str] = []
    result = distiller(
        resumed,
        settings=BY_TRIAL,
        checkpoint=file,
        on_progress=lambda progress: texts.append(progress.text),
    ).run()
    assert result.rate_trials == expected.rate_trials
    assert same(weights(whole), weights(resumed))
    if calls > 10:  # the first trial was over, and is not done again
        assert not any("0.003: step 1 of" in text for text in texts)


def test_a_rate_that_explodes_is_a_bad_one() -> None:
    class Fragile(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = small.student()
            self.start = self.module.module[0].weight.detach().clone()

        def forward(self, feed: Any) -> dict[str, Any]:
            moved = (self.module.module[0].weight - self.start).abs().max()
            outputs: dict[str, Any] = self.module(feed)
            if float(moved.detach()) > 0.02:
                outputs = {name: each * math.nan for name, each in outputs.items()}
            return outputs

    result = distiller(Fragile(), settings=BY_TRIAL).run()
    failed = [trial.rate for trial in result.rate_trials if not math.isfinite(trial.loss)]
    assert failed
    assert result.peak_learning_rate < min(failed)


def test_a_short_training_has_no_trial() -> None:
    result = distiller(settings=dataclasses.replace(BY_TRIAL, steps=20)).run()
    assert (result.rate_trials, result.peak_learning_rate) == ([], USUAL_RATE)
