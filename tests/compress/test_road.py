"""The long road on a small model."""

import dataclasses
import itertools
import json
import pathlib
import signal
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.accuracy import Budget
from onnxopt.compress import (
    CompressReport,
    CompressSettings,
    InterruptedCompressionError,
    Target,
    compress,
    judge,
    road,
)
from onnxopt.errors import FeedError, ModelError, OptionError
from onnxopt.optimizer import Settings, optimize
from onnxopt.report.document import document
from onnxopt.report.json_file import json_text
from onnxopt.report.page.views import view
from onnxopt.training.distillation import DistillReport, DistillSettings, distill
from onnxopt.training.settings import TrainingSettings
from tests.differential import parse
from tests.differential import run as run_model
from tests.training import models

LOOP = TrainingSettings(steps=60, batch_size=32, evaluations=4, learning_rate=0.02)
FAST = CompressSettings(
    target=Target("macs", 0.6),
    prune="exact,prune-channels{amount=$amount,of=$of,round-to=1,criterion=l2,compensate=false}",
    quantize="",
    distill=DistillSettings(training=LOOP),
    budget=Budget(min_sqnr=None, min_agreement=0.7),
    seconds=0.05,
)


@pytest.fixture
def paths(tmp_path: pathlib.Path) -> dict[str, pathlib.Path]:
    found = models.write(tmp_path, teacher=models.balanced(models.convolutional()))
    return {**found, "out": tmp_path / "out.onnx"}


def run(paths: dict[str, pathlib.Path], settings: CompressSettings = FAST) -> CompressReport:
    return compress(paths["teacher"], paths["out"], paths["data"], settings)


def test_the_road(paths: dict[str, pathlib.Path]) -> None:
    original = paths["teacher"].read_bytes()
    report = run(paths)
    names = [stage.name.split()[0] for stage in report.stages]
    assert names[:3] == ["prepare", "prune", "distill"]
    pruned, distilled = report.stages[1:3]
    assert pruned.fidelity.agreement is not None
    assert distilled.fidelity.agreement is not None
    assert distilled.fidelity.agreement.same > pruned.fidelity.agreement.same
    assert distilled.distillation is not None
    assert distilled.left <= 0.63
    assert report.result is not None
    assert report.result.reached
    assert not report.result.objection
    assert paths["teacher"].read_bytes() == original
    result = onnx.load(paths["out"])
    feed = {"image": models.random(123, 200, 1, 8, 8)}
    answers = [
        run_model(each, feed)[0].argmax(axis=1) for each in (onnx.load(paths["teacher"]), result)
    ]
    assert (answers[0] == answers[1]).mean() > 0.6
    assert [value.name for value in result.graph.output] == ["logits"]
    found = json.loads(json_text(document("compress", report.to_dict())))
    assert [stage["name"] for stage in found["stages"]] == [each.name for each in report.stages]
    page = view(found)
    assert list(page.sections) == ["road", "training", "again"]
    assert page.lead[2].startswith("Target: ")
    assert distilled.distillation["parameters"] > 0
    assert not paths["out"].with_name("out.onnx.compress").exists()
    assert [row[0].text for row in page.parts["road"]["table"].rows] == [
        each.name for each in report.stages
    ]


def test_what_nothing_may_cost_gives_the_input(paths: dict[str, pathlib.Path]) -> None:
    strict = dataclasses.replace(
        FAST, prepare="", budget=Budget(min_sqnr=200.0, min_agreement=1.0), attempts=1
    )
    report = run(paths, strict)
    assert report.result is None or report.result.name == "prepare"
    assert all(stage.objection for stage in report.stages[1:])
    assert paths["out"].read_bytes() == paths["teacher"].read_bytes()


def test_a_budget_that_is_exceeded_has_the_road_walked_with_less(
    paths: dict[str, pathlib.Path],
) -> None:
    none = dataclasses.replace(FAST.distill, training=dataclasses.replace(LOOP, steps=1))
    strict = dataclasses.replace(
        FAST, distill=none, budget=Budget(min_sqnr=60.0), amount=0.5, attempts=3
    )
    report = run(paths, strict)
    pruned = [stage.name for stage in report.stages if stage.name.startswith("prune")]
    assert pruned == ["prune 50%", "prune 30%", "prune 18%"]
    assert sum("walked again with less" in note for note in report.notes) == 2


def test_steps_say_how_far_they_are(paths: dict[str, pathlib.Path]) -> None:
    steps: list[str] = []
    compress(paths["teacher"], paths["out"], paths["data"], FAST, on_step=steps.append)
    judged = [step.partition("sample ")[2] for step in steps if ": judging, sample" in step]
    count = int(judged[-1].split(" of ")[1])
    assert judged[:count] == [f"{number} of {count}" for number in range(1, count + 1)]
    assert f"running the original, sample {count} of {count}" in steps


def test_layers_are_looked_at_where_somebody_wants_to_know(paths: dict[str, pathlib.Path]) -> None:
    report = compress(paths["teacher"], paths["out"], paths["data"], FAST, details=True)
    page = view(json.loads(json_text(document("compress", report.to_dict()))))
    assert list(page.sections) == ["road", "layers", "training", "again"]
    assert any(sentence.startswith("Slowest layer: ") for sentence in page.lead)


def test_ctrl_c_while_training_ends_the_road(paths: dict[str, pathlib.Path]) -> None:
    def stop(step: str) -> None:
        if step.startswith("distill: distilling: step"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedCompressionError):
        compress(paths["teacher"], paths["out"], paths["data"], FAST, on_step=stop)
    assert not paths["out"].exists()


def test_bad_input(paths: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    with pytest.raises(ModelError, match="is the input itself"):
        compress(paths["teacher"], paths["teacher"], paths["data"], FAST)
    with pytest.raises(OptionError, match=r"above 0 and at most 1, not 1\.5"):
        Target("size", 1.5)
    with pytest.raises(FeedError, match="does not exist"):
        compress(paths["teacher"], paths["out"], tmp_path / "nothing.npz", FAST)
    np.savez(tmp_path / "none.npz", image=np.zeros((0, 1, 8, 8), np.float32))
    with pytest.raises(FeedError, match="holds no samples"):
        compress(paths["teacher"], paths["out"], tmp_path / "none.npz", FAST)
    assert not paths["out"].exists()


def test_an_interrupted_road_goes_on(
    paths: dict[str, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the training, and stopped after it: what is done stays done, to the same bits."""
    run(paths)
    whole = paths["out"].read_bytes()
    paths["out"].unlink()

    def stop_at(words: str) -> None:
        def on_step(step: str) -> None:
            if step.startswith(words):
                raise KeyboardInterrupt

        with pytest.raises(InterruptedCompressionError, match="the same command goes on"):
            compress(paths["teacher"], paths["out"], paths["data"], FAST, on_step=on_step)
        assert not paths["out"].exists()

    trained: list[DistillReport] = []

    def remembered(*arguments: Any, **options: Any) -> DistillReport:
        trained.append(distill(*arguments, **options))
        return trained[-1]

    monkeypatch.setattr(road, "distill", remembered)
    stop_at("distill: distilling: step 30")
    stop_at("distill: writing")
    assert not trained
    stop_at("writing")
    assert [report.training.resumed_at for report in trained] == [LOOP.steps]
    report = run(paths)
    assert len(trained) == 1
    assert paths["out"].read_bytes() == whole
    assert "What an interrupted run had done before was not done again." in report.notes
    assert not paths["out"].with_name("out.onnx.compress").exists()


def test_aiming_that_was_interrupted_goes_on_with_what_was_measured(
    paths: dict[str, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times that differ in each run, and samples that are written anew, must not begin it anew."""
    latency = dataclasses.replace(FAST, target=Target("latency", 0.3), attempts=1)
    times = itertools.count(1)

    def uneven(*_: Any, **__: Any) -> list[list[float]]:
        return [[1.0] * 8, [0.9 - 0.01 * next(times)] * 8]

    monkeypatch.setattr(judge, "race", uneven)
    made: list[str | None] = []

    def remembered(source: pathlib.Path, target: pathlib.Path, settings: Settings, **_: Any) -> Any:
        made.append(settings.passes)
        return optimize(source, target, settings)

    monkeypatch.setattr(road, "optimize", remembered)

    def stop(step: str) -> None:
        if step.startswith("prune"):
            raise KeyboardInterrupt

    with pytest.raises(InterruptedCompressionError):
        compress(paths["teacher"], paths["out"], paths["data"], latency, on_step=stop)
    aimed = len(made)
    assert aimed > 2
    paths["data"].write_bytes(paths["data"].read_bytes())
    report = run(paths, latency)
    assert "What an interrupted run had done before was not done again." in report.notes
    assert not set(made[:aimed]) & set(made[aimed + 1 :]) - {FAST.prepare}
    made.clear()
    with pytest.raises(InterruptedCompressionError):
        compress(paths["teacher"], paths["out"], paths["data"], latency, on_step=stop)
    other = run(paths, dataclasses.replace(latency, amount=0.3))
    assert any("all was done anew" in note for note in other.notes)


@dataclasses.dataclass(frozen=True)
class Done:
    """What there is to know of an optimization."""

    changed: bool = True
    undone: tuple[()] = ()


def quantizes(source: pathlib.Path, target: pathlib.Path, settings: Settings, **_: Any) -> Done:
    """As quantization does it: without a budget small and noisy, else larger and quieter."""
    model = onnx.load(source)
    if settings.passes == "quantize":
        wanted = settings.budget.min_sqnr
        noise = 10 ** (-(20.0 if wanted is None else wanted + 1) / 20)
        kept = 0 if wanted is None else 2_000
        weights = {each.name: each for each in model.graph.initializer}
        w, ballast = (onnx.numpy_helper.to_array(weights[name]) for name in ("w", "ballast"))
        signs = np.random.default_rng(0).choice([-1, 1], w.shape)
        changed = {"w": w + noise * np.abs(w).mean() * signs, "ballast": ballast[:kept]}
        for name, array in changed.items():
            weights[name].CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(model, target)
    return Done()


@pytest.mark.parametrize(
    ("share", "wanted", "expected", "result"),
    [
        (0.8, 10.0, ["prepare", "quantize", "quantize less"], "quantize less"),  # room to spare
        (0.5, 10.0, ["prepare", "quantize", "quantize less"], "quantize"),  # less room than that
        (0.43, 10.0, ["prepare", "quantize"], "quantize"),  # no room
        (0.8, 22.0, ["prepare", "quantize", "quantize less"], "quantize less"),  # over the budget
        # What is still over the budget after training is not the result, fast as it may be.
        (0.5, 60.0, ["prepare", "quantize", "quantize less", "distill again"], "quantize less"),
    ],
)
def test_quantization_costs_no_more_than_the_target_demands(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    wanted: float,
    expected: list[str],
    result: str,
) -> None:
    """Of about 28,000 bytes quantization leaves 12,000, and 20,000 when it is quieter."""
    weights = {
        "w": np.random.default_rng(0).normal(0, 0.1, (56, 56)).astype(np.float32),
        "ballast": np.zeros(4_000, np.float32),
    }
    text = "dense (float[n, 56] x) => (float[n, 56] y) { y = MatMul(x, w) }"
    onnx.save(parse(text, weights), tmp_path / "dense.onnx")
    data = np.random.default_rng(1).normal(0, 1, (200, 56)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=data)
    monkeypatch.setattr(road, "optimize", quantizes)
    settings = dataclasses.replace(
        FAST,
        target=Target("size", share),
        prune="",
        quantize="quantize",
        budget=Budget(min_sqnr=wanted, min_agreement=None),
    )
    report = compress(
        tmp_path / "dense.onnx", tmp_path / "out.onnx", tmp_path / "samples.npz", settings
    )
    assert [stage.name for stage in report.stages] == expected
    assert report.result is not None
    assert report.result.name == result


def test_to_aim_quantization_takes_few_samples(
    paths: dict[str, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Settings] = []
    counts: dict[str, int] = {}

    def remembered(source: pathlib.Path, target: pathlib.Path, settings: Settings, **_: Any) -> Any:
        asked.append(settings)
        counts[settings.effort] = len(list(pathlib.Path(str(settings.data)).iterdir()))
        return optimize(source, target, settings)

    monkeypatch.setattr(road, "optimize", remembered)
    run(paths)
    assert any(each.effort == "low" for each in asked)
    assert 32 <= counts["low"] <= 128 < counts["medium"]


def test_workers_share_the_passes_and_do_not_make_another_compression(
    paths: dict[str, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, str | None]] = []
    alone = optimize

    def spied(source: Any, target: Any, settings: Any, **options: Any) -> Any:
        asked.append((settings.workers, settings.scheduler))
        return alone(source, target, dataclasses.replace(settings, workers=1), **options)

    monkeypatch.setattr(road, "optimize", spied)
    shared = dataclasses.replace(FAST, workers=2)
    run(paths, shared)
    assert set(asked) == {(2, None)}
    marks = {road._mark(paths["teacher"], paths["data"], each) for each in (FAST, shared)}
    assert len(marks) == 1


def test_what_cannot_be_counted_counts_as_everything(
    paths: dict[str, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = judge._macs

    def unsure(path: pathlib.Path, feed: Any) -> int | None:
        return count(path, feed) if path == paths["teacher"] else None

    monkeypatch.setattr(judge, "_macs", unsure)
    report = run(paths, dataclasses.replace(FAST, amount=0.3, attempts=1))
    assert {stage.left for stage in report.stages} == {1.0}
    monkeypatch.setattr(judge, "_macs", lambda path, feed: None)
    with pytest.raises(OptionError, match="cannot be counted: aim at latency or size"):
        run(paths)
