import json
import pathlib
import shutil

import numpy as np
import onnx
import pytest

from onnxopt import bench as engine
from tests.cli.conftest import run, weights
from tests.differential import parse


def test_measures_each_model_against_the_first(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = tmp_path / "other.onnx"
    shutil.copy(model, other)
    result = run("bench", model, other, "--seconds", "0.1", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    first, second = document["rows"]
    assert first["ratio"] is None
    assert second["ratio"]["low"] <= second["ratio"]["median"] <= second["ratio"]["high"]
    for row in document["rows"]:
        assert row["bytes"] == model.stat().st_size
        assert row["load_seconds"] > 0
        assert row["peak_memory_bytes"] > document["idle_memory_bytes"] > 0
        assert row["latency"]["rounds"] >= 11
    assert document["paired"] is True
    assert document["environment"]["threads"] == 1


def test_table_fits(model: pathlib.Path) -> None:
    result = run("bench", model, model, model, "--seconds", "0.05", "--threads", "2")
    assert result.exit_code == 0, result.output
    assert "latency" in result.stdout
    assert "2 threads" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_memory_is_each_models_own(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    large = tmp_path / "large.onnx"
    w = weights(0, 2048, 4096)  # 32 MiB
    onnx.save(
        parse("g (float[n, 2048] x) => (float[n, m] y) { y = MatMul(x, w) }", {"w": w}), large
    )
    shape = ("--shape", "x:1,2048")
    big = json.loads(run("bench", large, *shape, "--seconds", "0", "--json").stdout)["rows"][0]
    rows = json.loads(run("bench", model, "--seconds", "0", "--json").stdout)["rows"]
    assert big["peak_memory_bytes"] > rows[0]["peak_memory_bytes"] + 30 * 2**20


def test_data_is_used(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "feeds.npz", x=np.ones((6, 4), np.float32))
    result = run("bench", model, "--data", tmp_path / "feeds.npz", "--seconds", "0", "--json")
    assert json.loads(result.stdout)["inputs"] == {"x": [1, 4]}


def test_model_with_other_inputs_is_named(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = tmp_path / "other.onnx"
    onnx.save(parse("g (float[n] z) => (float[n] y) { y = Neg(z) }"), other)
    result = run("bench", model, other, "--seconds", "0")
    assert result.exit_code == 1
    assert "other.onnx cannot be measured" in result.stderr


def test_large_models_run_one_after_the_other(
    model: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_RACE_LIMIT_BYTES", 0)
    document = json.loads(run("bench", model, model, "--seconds", "0", "--json").stdout)
    assert document["paired"] is False
    first, second = (row["latency"]["rounds"] for row in document["rows"])
    assert first == second >= 11
