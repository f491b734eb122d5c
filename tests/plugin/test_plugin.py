"""A pass of another package is found through its entry point, as ours are."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import onnx
import pytest

from tests.differential import parse

_EXAMPLE = pathlib.Path(__file__).parent / "example"
_NAME = "example-cancel-negations"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder into which the example package is installed, without a network."""
    folder = tmp_path_factory.mktemp("site")
    copy = tmp_path_factory.mktemp("source")
    for file in _EXAMPLE.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(folder)]
    subprocess.run([*command, str(copy)], check=True, capture_output=True)
    return folder


def _run(site: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(site), str(pathlib.Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )


def _onnxopt(site: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _run(site, "-m", "onnxopt", *arguments)


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    text = "g (float[N] x) => (float[N] y) { a = Neg(x) b = Neg(a) y = Relu(b) }"
    (tmp_path / "in.onnx").write_bytes(parse(text).SerializeToString())
    return tmp_path / "in.onnx"


def test_it_is_listed_beside_ours(site: pathlib.Path) -> None:
    found = _onnxopt(site, "passes")
    assert found.returncode == 0, found.stderr
    assert _NAME in found.stdout
    assert "eliminate-identities" in found.stdout


def test_its_page_shows_its_options(site: pathlib.Path) -> None:
    found = _onnxopt(site, "passes", _NAME)
    assert found.returncode == 0, found.stderr
    assert "in-bodies" in found.stdout
    assert "-(-x) = x" in found.stdout


def test_the_pipeline_runs_it(site: pathlib.Path, model: pathlib.Path) -> None:
    target, report = model.with_name("out.onnx"), model.with_name("report.json")
    pipeline = f"eliminate-identities,{_NAME}{{in-bodies=false}}"
    found = _onnxopt(
        site, "optimize", str(model), str(target), "--passes", pipeline, "--report", str(report)
    )
    assert found.returncode == 0, found.stderr
    assert [node.op_type for node in onnx.load(target).graph.node] == ["Relu"]
    document = json.loads(report.read_text())
    assert document["verified"]
    assert document["pipeline"] == pipeline
    assert _NAME in [each["name"] for each in document["passes"]]


def test_python_finds_it(site: pathlib.Path) -> None:
    code = f"""
from onnxopt.pass_manager import make_pass
pass_ = make_pass({_NAME!r}, {{"in-bodies": "false"}})
print(pass_.text, type(pass_).__module__)
"""
    found = _run(site, "-c", code)
    assert found.stdout == f"{_NAME}{{in-bodies=false}} onnxopt_example_plugin\n", found.stderr


def test_without_it_the_name_is_unknown(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    target = str(tmp_path / "out.onnx")
    found = _onnxopt(tmp_path, "optimize", str(model), target, "--passes", _NAME)
    assert found.returncode != 0
    assert f"there is no pass '{_NAME}'" in found.stderr.replace("\n", " ")


def _distribution(folder: pathlib.Path, entry: str, module: str = "") -> None:
    info = folder / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[onnxopt.passes]\nbroken = {entry}\n")
    if module:
        (folder / "broken_plugin.py").write_text(module)


def test_a_package_that_does_not_import_is_named(tmp_path: pathlib.Path) -> None:
    _distribution(tmp_path, "broken_plugin:PASSES", "import no_such_module")
    found = _run(tmp_path, "-c", "from onnxopt.pass_manager import make_pass; make_pass('x')")
    assert found.returncode != 0
    assert "OptionError: entry point 'broken' (broken_plugin:PASSES) cannot" in found.stderr


def test_two_packages_with_one_name_are_refused(tmp_path: pathlib.Path) -> None:
    _distribution(tmp_path, "broken_plugin:PASSES", "PASSES = {'eliminate-identities': object}")
    found = _run(tmp_path, "-c", "from onnxopt.pass_manager import make_pass; make_pass('x')")
    assert found.returncode != 0
    assert "two packages offer a pass 'eliminate-identities'" in found.stderr
