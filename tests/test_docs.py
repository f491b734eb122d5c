"""The examples in README and docs are run as they stand."""

import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from benchmarks import page, quoted, scaling_page
from benchmarks.results import Results
from onnxopt.calibration.pieces import pieces
from onnxopt.model import from_proto, to_proto
from onnxopt.pass_contract import Outcome
from onnxopt.pass_manager import PassManager
from onnxopt.report.json_file import json_text
from tests.differential import assert_same, op_types, parse, run
from tests.report.examples import full_document

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> Iterator[str]:
    for source in PAGES:
        for block in blocks(source, "console"):
            for line in block.splitlines():
                if line.startswith("$ onnxopt"):
                    yield line.removeprefix("$ ").partition("  #")[0].strip()


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder with the files that the examples name."""
    model = parse(
        "g (float[n, 4] x) => (float[n, 4] y) { a = Identity(x) b = Relu(a) y = Identity(b) }"
    )
    onnx.save(model, tmp_path / "model.onnx")
    onnx.save(model, tmp_path / "smaller.onnx")
    (tmp_path / "run.json").write_text(json_text(full_document()))
    rows = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=rows)
    (tmp_path / "models").mkdir()
    onnx.save(model, tmp_path / "models" / "one.onnx")
    voice = parse(
        """g (float[b, n] input, int64 sr) => (float[b, n] y) {
            r = Cast<to = 1>(sr) a = Identity(input) y = Mul(a, r)
        }"""
    )
    onnx.save(voice, tmp_path / "vad.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_commands(command: str, folder: pathlib.Path) -> None:
    program, *arguments = shlex.split(command)
    assert program == "onnxopt"
    done = subprocess.run(
        [sys.executable, "-m", "onnxopt", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if arguments[0] == "optimize":
        onnx.checker.check_model(folder / arguments[2])


def test_python_in_the_readme(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(ROOT / "README.md", "python")
    exec(block, {})
    assert capsys.readouterr().out.startswith("3 1 ")
    assert op_types(from_proto(onnx.load(folder / "smaller.onnx"))) == ["Relu"]


def test_the_pass_that_the_page_on_passes_builds() -> None:
    block, _ = blocks(ROOT / "docs" / "writing-a-pass.md", "python")
    names: dict[str, object] = {}
    exec(block, names)
    pass_class = names["CancelNegations"]
    assert isinstance(pass_class, type)
    model = parse("g (float[n] x) => (float[n] y) { a = Neg(x) b = Neg(a) c = Abs(b) y = Neg(c) }")
    optimized = from_proto(model)
    PassManager([pass_class()]).run(optimized)
    assert op_types(optimized) == ["Abs", "Neg"]
    feed = {"x": np.arange(-3, 3, dtype=np.float32)}
    assert_same(run(model, feed), run(to_proto(optimized), feed))
    kept = from_proto(parse("g (float[n] x) => (float[n] y) { a = Neg(x) y = Neg(a) }"))
    PassManager([pass_class()]).run(kept)
    assert op_types(kept) == ["Neg", "Neg"]


def test_how_that_page_tells_findings() -> None:
    _, block = blocks(ROOT / "docs" / "writing-a-pass.md", "python")
    model = from_proto(parse("g (float[n] x) => (float[n] y) { y = Neg(x) }"))
    node, outcome = model.graph[0], Outcome(model, False)
    names = {"node": node, "value": node.outputs[0], "outcome": outcome}
    exec(block, {**names, "counts": (1, 2), "edges": (0.0, 1.0, 2.0), "low": 0.0, "high": 1.5})
    assert outcome.findings.to_dict().keys() == {"layers", "histograms"}


def test_what_the_page_on_scale_works_out() -> None:
    text = (ROOT / "docs" / "scale.md").read_text()
    names = scaling_page.plan(text)
    unit = {"seconds": 0.02, "piece_seconds": 0.01, "timing_seconds": 0.005}
    seconds, batch = names["calibration_seconds"], names["batch_seconds"]
    assert seconds(1000, unit, 1, start=0) == pytest.approx(20)
    assert 10 < seconds(1000, unit, 2, start=0) < 12
    assert seconds(10_000_000, unit, 1e9, start=0) == pytest.approx(0.01 * len(list(pieces(10**7))))
    assert batch(100, [unit], 1, 1, start=0) == pytest.approx(2)
    assert batch(100, [unit], 4, 1, start=0) == pytest.approx(1.5 / 4 + 0.5)
    assert batch(100, [unit], 4, 4, start=0) == pytest.approx(0.5)


def test_the_tables_on_scale_are_those_of_the_measurements(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "scale.md").read_text()
    (tmp_path / "scale.md").write_text(text)
    monkeypatch.setattr(scaling_page, "_PAGE", tmp_path / "scale.md")
    scaling_page.write(Results("scaling"))
    assert (tmp_path / "scale.md").read_text() == text


def test_the_figures_in_readme_are_those_of_the_measurements(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text(re.sub(r"\d+\.\d\d?x", "0.00x", text))
    monkeypatch.setattr(quoted, "_README", tmp_path / "README.md")
    quoted.write()
    assert (tmp_path / "README.md").read_text() == text
    quotes = re.findall(r"<!-- (?!end)\w+ -->\n.*?<!-- end -->", text, re.DOTALL)
    assert len(quotes) == 3
    outside = text
    for quote in quotes:
        assert len(quote.splitlines()) > 5
        outside = outside.replace(quote, "")
    assert re.findall(r"\d[\d.]*x\b|\d (?:s|ms|µs|[KMG]i?B)\b", outside) == []


def test_the_peers_in_readme_are_those_that_are_measured() -> None:
    (sentence,) = re.findall(
        r"`make bench` next to ([^,]+,[^,]+),", (ROOT / "README.md").read_text()
    )
    pinned = (ROOT / "benchmarks" / "peer-requirements.txt").read_text()
    for name, version in re.findall(r"(\w+) ([\d.]+\d)", sentence):
        assert f"{name}=={version}\n" in pinned


def test_the_page_of_benchmarks_is_made_from_the_results(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_PAGE", tmp_path / "benchmarks.md")
    page.write(Results("simplification"))
    assert (tmp_path / "benchmarks.md").read_text() == (ROOT / "docs/benchmarks.md").read_text()
    for name in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "docs/benchmarks.md").read_text()):
        assert (ROOT / "docs" / name).is_file()
