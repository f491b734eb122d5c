from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxopt.compress import CompressSettings, Target
from onnxopt.toml_tables import settings_from
from onnxopt.training.distillation import DistillSettings
from tests.cli.conftest import run
from tests.training import models

FAST = ("--steps", "30", "--patience", "0", "--batch-size", "32", "--learning-rate", "0.02")


@pytest.fixture
def paths(tmp_path: pathlib.Path) -> dict[str, pathlib.Path]:
    teacher = models.balanced(models.convolutional())
    return models.write(tmp_path, teacher=teacher, student=models.noisy(teacher))


def command(paths: dict[str, pathlib.Path], out: pathlib.Path) -> list[object]:
    return [
        "distill", out, "--teacher", paths["teacher"], "--student", paths["student"],
        "--data", paths["data"],
    ]  # fmt: skip


def test_distill(paths: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    page = tmp_path / "report.html"
    result = run(*command(paths, out), *FAST, "--report", report, "--report", page)
    assert result.exit_code == 0, result.output
    for words in ("Taught by teacher", "decides as the teacher (logits)", "held-out loss"):
        assert words in page.read_text()
    assert "decides as the teacher ('logits')" in result.stdout
    assert "logits   logits" in result.stdout
    facts = json.loads(report.read_text())
    assert facts["after"]["agreement"]["logits"] > facts["before"]["agreement"]["logits"]
    assert facts["training"]["steps"] == 30
    onnx.checker.check_model(str(out))


def test_labels_and_json(paths: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    result = run(*command(paths, tmp_path / "out.onnx"), *FAST, "--labels", "label", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["task"] == {"output": "logits", "loss": "cross-entropy"}
    assert facts["after"]["accuracy"] > facts["before"]["accuracy"]


def test_a_recipe(paths: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        "temperature = 4\nlosses = { logits = 'dkd' }\n[training]\nsteps = 3\nbatch-size = 32\n"
        "[pruning]\nkind = 'one-shot'\nsparsity = 0.5\n"
    )
    result = run(*command(paths, tmp_path / "out.onnx"), "--recipe", recipe, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["outputs"][0]["loss"] == "dkd"
    assert facts["training"]["steps"] == 3
    assert facts["masked"] == pytest.approx(0.5, abs=0.02)


def test_the_recipes_of_the_documentation() -> None:
    page = (pathlib.Path(__file__).parents[2] / "docs" / "distillation.md").read_text()
    text, road = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    found = settings_from(DistillSettings, tomllib.loads(text), "the page")
    assert (found.low_bit, found.penalty) == ("ternary", "group-lasso")
    assert found.pruning is not None
    assert found.pruning.n_m == (2, 4)
    compression = settings_from(CompressSettings, tomllib.loads(road), "the page")
    assert compression.target == Target("size", 0.4)
    assert compression.distill.training.epochs == 5.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("temprature = 4", "unknown key 'temprature'; did you mean 'temperature'?"),
        ("[training]\nepochs = 'many'", "'epochs' of 'training' of recipe"),
        ("[training]\nsteps = 1.5", "takes a whole number, not 1.5"),
        ("[pruning]\nkind = 'slow'", "takes one of one-shot, iterative, gradual"),
        ("[pruning]\nsparsity = 2.0", "a sparsity is a share from 0 up to 1"),
        ("hints = ['a']", "takes a table"),
        ("label-weight = 0.1\nlabel_weight = 0.2", "says 'label_weight' twice"),
        ("a = ", "is not TOML"),
    ],
)
def test_a_recipe_with_a_mistake(
    paths: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
    fails: Callable[..., str],
    text: str,
    says: str,
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    fails(*command(paths, tmp_path / "out.onnx"), "--recipe", recipe, says=(says,))


def test_bad_input(
    paths: dict[str, pathlib.Path], tmp_path: pathlib.Path, fails: Callable[..., str]
) -> None:
    start = command(paths, tmp_path / "out.onnx")
    fails(*start, "--loss", "logits=l2", says=("'l2' is no loss; choose one of kl",))
    fails(*start, "--kind", "logits=dog", says=("'dog' is no kind of output",))
    fails(*start, "--temperature", "0", says=("a temperature is above 0",))
    fails(*start, "--labels", "names", says=("no array 'names' of labels",))
    fails(*start, "--hint", "rr", says=("computes no tensor 'rr'",))
    paths["data"] = tmp_path / "nothing.npz"
    fails(*command(paths, tmp_path / "out.onnx"), says=("does not exist",))


def test_ctrl_c_is_no_loss(paths: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    """The process is stopped from outside; the same command gives what it would have given."""
    settings = ["--steps", "400", "--batch-size", "32", "--patience", "0", "--threads", "1"]

    def start(out: pathlib.Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "onnxopt", *map(str, command(paths, out)), *settings],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=pathlib.Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    whole = start(tmp_path / "whole.onnx")
    assert whole.wait(300) == 0
    out = tmp_path / "out.onnx"
    checkpoint = tmp_path / "out.onnx.checkpoint"
    stopped = start(out)
    for _ in range(3000):
        if checkpoint.exists() or stopped.poll() is not None:
            break
        try:
            stopped.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    stopped.send_signal(signal.SIGINT)
    _, errors = stopped.communicate(timeout=300)
    assert stopped.returncode == 130, errors
    assert "the same command goes on from there" in errors
    assert not out.exists()
    again = start(out)
    output, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert "went on from step" in output
    assert out.read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    assert not checkpoint.exists()


def test_a_damaged_checkpoint(
    paths: dict[str, pathlib.Path], tmp_path: pathlib.Path, fails: Callable[..., str]
) -> None:
    (tmp_path / "out.onnx.checkpoint").write_bytes(b"nonsense")
    fails(*command(paths, tmp_path / "out.onnx"), *FAST, says=("cannot be read; remove it",))


def test_samples_in_a_folder(paths: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    inputs = models.images(40)
    for number in range(40):
        np.savez(folder / f"{number:03}.npz", image=inputs[number : number + 1], label=number % 5)
    paths["data"] = folder
    result = run(
        *command(paths, tmp_path / "out.onnx"), *FAST, "--labels", "label", "--json", "--steps", "2"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["samples"] == 40
