"""Folders of models: rows, failures, resuming, lost workers."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.batch import JOURNAL, optimize_folder
from onnxopt.errors import ModelError, OptionError
from onnxopt.parallel import ALONE
from onnxopt.parallel.processes import Processes
from onnxopt.recipe import Recipe
from tests.cli.conftest import run
from tests.differential import parse

TEXT = """g (float[n, {size}] x) => (float[n, {size}] y) {{
    a = MatMul(x, w) b = Identity(a) c = Relu(b) d = Identity(c) y = Neg(d)
}}"""
#: What is timed differs from run to run; what is written must not.
UNTIMED = Recipe({"guard_speed": False, "details": False}, {}, {}, {})
NAMES = ["a.onnx", "b.onnx", "broken.onnx", "deep/c.onnx", "deep/d.onnx", "e.onnx"]


def write_model(path: pathlib.Path, size: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = np.random.default_rng(size).standard_normal((size, size)).astype(np.float32)
    onnx.save(parse(TEXT.format(size=size), {"w": weights}), path)


@pytest.fixture
def models(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "models"
    for size, name in enumerate(NAMES, start=3):
        write_model(folder / name, size)
    (folder / "broken.onnx").write_bytes(b"no model")
    return folder


def results(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.onnx")
    }


def test_two_workers_write_what_one_writes(models: pathlib.Path, tmp_path: pathlib.Path) -> None:
    alone = optimize_folder(models, tmp_path / "one", UNTIMED, ALONE)
    with Processes(2) as crew:
        together = optimize_folder(models, tmp_path / "two", UNTIMED, crew)
    assert results(tmp_path / "one") == results(tmp_path / "two")
    for report in (alone, together):
        assert [row.model for row in report.rows] == NAMES
        assert [row.model for row in report.failed] == ["broken.onnx"]
        assert "broken.onnx" in report.failed[0].error
    assert results(tmp_path / "one").keys() == {*NAMES} - {"broken.onnx"}


def test_what_is_finished_is_left_alone(models: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    optimize_folder(models, out, UNTIMED, ALONE)
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.onnx")}
    write_model(models / "b.onnx", 9)
    write_model(models / "broken.onnx", 8)
    (out / "deep" / "d.onnx").unlink()
    (out / "deep" / ".d.onnx.killed").mkdir()
    (out / "deep" / ".d.onnx.killed" / "d.onnx").touch()
    (out / "deep" / ".c.onnx.other").touch()  # of another run, which may still be at it
    with (out / JOURNAL).open("a") as journal:
        journal.write('{"model": "a.onnx", "sta')  # the power went
    again = optimize_folder(models, out, UNTIMED, ALONE)
    assert not again.failed
    assert {row.model for row in again.rows if not row.kept} == {
        "b.onnx",
        "broken.onnx",
        "deep/d.onnx",
    }
    assert not (out / "deep" / ".d.onnx.killed").exists()
    assert (out / "deep" / ".c.onnx.other").exists()
    for name in ("a.onnx", "deep/c.onnx", "e.onnx"):
        assert (out / name).stat().st_mtime_ns == written[out / name]
    assert all(row.kept for row in optimize_folder(models, out, UNTIMED, ALONE).rows)
    other = optimize_folder(models, out, UNTIMED.replace(passes="fuse-activations"), ALONE)
    assert not any(row.kept for row in other.rows)


def test_a_worker_that_is_killed_half_way_changes_nothing(
    models: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    optimize_folder(models, tmp_path / "one", UNTIMED, ALONE)
    killed: list[int] = []
    with Processes(2) as crew:

        def kill(step: str) -> None:
            if "2 of 6" in step and not killed:
                killed.append(next(iter(crew._pool._processes)))
                os.kill(killed[0], signal.SIGKILL)

        report = optimize_folder(models, tmp_path / "two", UNTIMED, crew, on_step=kill)
    assert killed
    assert [row.model for row in report.failed] == ["broken.onnx"]
    assert results(tmp_path / "one") == results(tmp_path / "two")


def test_samples_beside_a_model_are_its_own(tmp_path: pathlib.Path) -> None:
    models = tmp_path / "models"
    write_model(models / "good.onnx", 4)
    write_model(models / "bad.onnx", 5)
    for name in ("good", "bad"):
        np.savez(models / f"{name}.npz", x=np.ones((6, 4), np.float32))
    recipe = UNTIMED.replace(passes="exact", shapes={"x": (2, 4), "of another model": (1,)})
    report = optimize_folder(models, tmp_path / "out", recipe, ALONE)
    assert [row.model for row in report.failed] == ["bad.onnx"]
    np.savez(models / "bad.npz", x=np.ones((6, 5), np.float32))
    report = optimize_folder(models, tmp_path / "out", recipe, ALONE)
    assert [(row.model, row.kept) for row in report.rows] == [
        ("bad.onnx", False),
        ("good.onnx", True),
    ]


def test_bad_folders_and_recipes(models: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ModelError, match="is no folder"):
        optimize_folder(models / "a.onnx", tmp_path / "out", UNTIMED, ALONE)
    with pytest.raises(ModelError, match="another folder for the results"):
        optimize_folder(models, models, UNTIMED, ALONE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no \.onnx files"):
        optimize_folder(tmp_path / "empty", tmp_path / "out", UNTIMED, ALONE)
    with pytest.raises(OptionError, match="take 'in_place' out of the recipe"):
        optimize_folder(models, tmp_path / "out", UNTIMED.replace(in_place=True), ALONE)


def test_results_inside_the_folder_of_models_are_no_models(models: pathlib.Path) -> None:
    out = models / "out"
    first = optimize_folder(models, out, UNTIMED, ALONE)
    again = optimize_folder(models, out, UNTIMED, ALONE)
    assert len(again.rows) == len(first.rows) == len(NAMES)


def test_the_command(models: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.rmtree(models / "deep")
    out = tmp_path / "out"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('passes = "exact"\nguard-speed = false\ndetails = false\n')
    result = run("batch", models, out, "--recipe", recipe, "--workers", 2)
    assert result.exit_code == 1, result.output
    assert "4 models, 1 failed" in result.stdout
    assert "broken.onnx: " in result.stdout
    summary: dict[str, Any] = json.loads((out / "batch.json").read_text())
    assert summary["kind"] == "batch"
    assert [row["state"] for row in summary["rows"]] == ["optimized"] * 2 + ["failed", "optimized"]
    page = (out / "batch.html").read_text()
    for row in summary["rows"]:
        if row["state"] == "failed":
            assert row["error"] in page.replace("&#39;", "'")
        else:
            assert f'<a href="{row["page"]}">' in page
            assert (out / row["page"]).is_file()
            assert json.loads((out / row["report"]).read_text())["kind"] == "optimize"
    (models / "broken.onnx").unlink()
    again = run("batch", models, out, "--recipe", recipe, "--json")
    assert again.exit_code == 0, again.output
    assert all(row["kept"] for row in json.loads(again.stdout)["rows"])
