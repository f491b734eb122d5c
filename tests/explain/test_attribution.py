"""Attributions of models whose reasons are known."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import numpy as np
import onnx
import pytest

from onnxopt.errors import FeedError, ModelError, OptionError
from onnxopt.explain import AttributionReport, explain
from onnxopt.runtime.worker import shared_worker
from tests.cli.conftest import run
from tests.differential import parse

pytest.importorskip("shap", reason="needs shap (extra explain)")

LINEAR = "g (float[n, 8] x) => (float[n, 2] y) { y = MatMul(x, w) }"


def linear(path: pathlib.Path, weights: list[float]) -> pathlib.Path:
    """A model whose first class gets the weighted sum of the inputs, the second its negative."""
    w = np.stack([weights, np.negative(weights)], axis=1).astype(np.float32)
    onnx.save(parse(LINEAR, {"w": w}), path)
    return path


def samples(count: int = 4, size: int = 8) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"x": random.standard_normal((1, size)).astype(np.float32)} for _ in range(count)]


def explained(
    first: pathlib.Path, second: pathlib.Path, feeds: list[dict[str, np.ndarray]]
) -> AttributionReport:
    return explain((first, second), feeds, shared_worker("trials"), output="y")


def test_of_a_linear_model_both_methods_find_the_terms(tmp_path: pathlib.Path) -> None:
    weights = [3.0, -2.0, 1.0, 0.5, 0.0, 4.0, -1.0, 2.0]
    model = linear(tmp_path / "a.onnx", weights)
    feeds = samples(3)
    report = explained(model, model, feeds)
    baseline = np.concatenate([feed["x"] for feed in feeds]).mean()
    for each in report.samples:
        x = feeds[each.sample]["x"][0].astype(np.float64)
        sign = 1 if x @ weights > 0 else -1
        terms = sign * (x - baseline) * weights
        for one, other in each.attributions.values():
            assert one == pytest.approx(terms, abs=1e-4)
            assert other == pytest.approx(terms, abs=1e-4)
        assert (each.occlusion, each.shapley) == (1.0, 1.0)
    assert report.verdict == "The second model answers for the same reasons on all of 3 samples."


def test_same_answer_for_other_reasons_is_said(tmp_path: pathlib.Path) -> None:
    feeds = [{"x": np.ones((1, 8), np.float32)}, {"x": np.full((1, 8), 3, np.float32)}]
    first = linear(tmp_path / "a.onnx", [9, 8, 7, 6, 1, 1, 1, 1])
    second = linear(tmp_path / "b.onnx", [1, 1, 1, 1, 6, 7, 8, 9])
    report = explained(first, second, feeds)
    assert all(each.same_decision and each.other_reasons for each in report.samples)
    assert report.occlusion < 0
    assert "On 2 of 2 samples the second model answers as the first does, but for other" in (
        report.verdict
    )


def test_other_answers_are_not_other_reasons(tmp_path: pathlib.Path) -> None:
    first = linear(tmp_path / "a.onnx", [1, 2, 3, 4, 5, 6, 7, 8])
    second = linear(tmp_path / "b.onnx", [-1, -2, -3, -4, -5, -6, -7, -8])
    report = explained(first, second, samples(3))
    assert all(each.same_decision is False for each in report.samples)
    assert not any(each.other_reasons for each in report.samples)
    assert "On 3 of 3 samples the second model decides otherwise" in report.verdict


def test_the_worst_five_keep_their_numbers(tmp_path: pathlib.Path) -> None:
    first = linear(tmp_path / "a.onnx", [1, 2, 3, 4, 5, 6, 7, 8])
    second = linear(tmp_path / "b.onnx", [1, 2, 3, 4, 5, 6, 8, 7])
    report = explained(first, second, samples(7))
    worst = [each.worst for each in report.samples]
    assert worst == sorted(worst)
    assert [bool(each.attributions) for each in report.samples] == [True] * 5 + [False] * 2


def test_batches_that_mix_samples_are_not_used(tmp_path: pathlib.Path) -> None:
    text = """g (float[n, 8] x) => (float[n, 2] y) {
        m = ReduceMean<keepdims = 1>(x, axes) c = Sub(x, m) y = MatMul(c, w)
    }"""
    w = np.random.default_rng(1).standard_normal((8, 2)).astype(np.float32)
    model = tmp_path / "a.onnx"
    onnx.save(parse(text, {"w": w, "axes": np.array([0])}), model)
    report = explained(model, model, samples(2))
    for each in report.samples:  # alone in its batch, a sample is its own mean
        assert each.attributions["occlusion"][0] == pytest.approx([0.0] * 8, abs=1e-5)


def test_a_fixed_batch_is_run_one_by_one(tmp_path: pathlib.Path) -> None:
    weights = np.arange(1, 9, dtype=np.float32)
    w = np.stack([weights, -weights], axis=1)
    text = "g (float[1, 8] x) => (float[1, 2] y) { y = MatMul(x, w) }"
    onnx.save(parse(text, {"w": w}), tmp_path / "a.onnx")
    (only,) = explained(tmp_path / "a.onnx", tmp_path / "a.onnx", samples(1)).samples
    assert only.occlusion == 1.0
    assert any(only.attributions["occlusion"][0])


def test_tokens_are_covered_by_the_commonest(tmp_path: pathlib.Path) -> None:
    text = """g (int64[n, k] ids, float[n, k] mask) => (float[n, 3] y) {
        e = Gather(table, ids) axes = Constant<value = int64[1] {-1}>()
        m = Unsqueeze(mask, axes) z = Mul(e, m)
        one = Constant<value = int64[1] {1}>()
        y = ReduceSum<keepdims = 0>(z, one)
    }"""
    table = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
    onnx.save(parse(text, {"table": table}), tmp_path / "a.onnx")
    feeds = [
        {"ids": np.array([ids]), "mask": np.ones((1, 6), np.float32)}
        for ids in ([1, 2, 3, 0, 0, 0], [4, 5, 0, 0, 0, 0])
    ]
    small = {name: value[:, :2] for name, value in feeds[0].items()}
    with pytest.raises(FeedError, match="no input can be covered"):
        explained(tmp_path / "a.onnx", tmp_path / "a.onnx", [small])
    report = explained(tmp_path / "a.onnx", tmp_path / "a.onnx", feeds)
    assert report.input == "ids"
    padded = next(each for each in report.samples if each.sample == 0)
    assert padded.attributions["occlusion"][0][3:] == pytest.approx([0, 0, 0], abs=1e-6)


def test_pictures_of_images(tmp_path: pathlib.Path) -> None:
    text = """g (float[n, 1, 14, 14] x) => (float[n, 2] y) {
        f = Flatten(x) y = MatMul(f, w)
    }"""
    w = np.random.default_rng(0).standard_normal((196, 2)).astype(np.float32)
    onnx.save(parse(text, {"w": w}), tmp_path / "a.onnx")
    feed = {"x": np.random.default_rng(1).random((1, 1, 14, 14)).astype(np.float32)}
    (only,) = explained(tmp_path / "a.onnx", tmp_path / "a.onnx", [feed]).samples
    assert only.grid == (7, 7)
    assert only.picture.startswith("data:image/png;base64,")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "shap" else find(name)
    )
    with pytest.raises(OptionError, match=r"pip install 'onnxopt\[explain\]'"):
        explain(("a", "b"), [], shared_worker("trials"), output="y")


def test_an_output_without_numbers(tmp_path: pathlib.Path) -> None:
    text = "g (float[n, 8] x) => (int64[n] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }"
    onnx.save(parse(text), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="no numbers"):
        explained(tmp_path / "a.onnx", tmp_path / "a.onnx", samples(1))


def test_by_command(tmp_path: pathlib.Path) -> None:
    first = linear(tmp_path / "a.onnx", [9, 8, 7, 6, 1, 1, 1, 1])
    second = linear(tmp_path / "b.onnx", [1, 1, 1, 1, 6, 7, 8, 9])
    np.savez(tmp_path / "data.npz", x=np.abs(np.concatenate([each["x"] for each in samples(6)])))
    report = tmp_path / "run.json"
    arguments = ("--data", tmp_path / "data.npz", "--attribution", "--report", report)
    result = run("check", first, second, *arguments, "--report", tmp_path / "run.html")
    assert result.exit_code == 1  # the outputs differ
    assert "for other reasons" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    found = json.loads(report.read_text())["attribution"]
    assert len(found["samples"]) == 6
    assert found["verdict"] in (tmp_path / "run.html").read_text()
