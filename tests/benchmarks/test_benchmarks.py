"""The benchmarks' own machinery, on small things; their figures are not tested."""

import pathlib
import sys
from typing import Any

import onnx
import pytest

from benchmarks import page, results
from benchmarks.processes import measure
from benchmarks.zoo import example_feeds
from benchmarks.zoo_synthetic import build_chain, build_transformer
from tests.differential import run


@pytest.fixture(autouse=True)
def _folders(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(page, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(page, "_PAGE", tmp_path / "benchmarks.md")


def row(tool: str, **more: Any) -> dict[str, Any]:
    before = {"nodes": 20, "all_nodes": 20, "bytes": 1000}
    return {
        "model": "digits",
        "tool": tool,
        "seconds": 1.5,
        "peak_bytes": 10**8,
        "code": 0,
        "message": "",
        "before": before,
        **more,
    }


def test_rows_survive_and_the_page_tells_failures(tmp_path: pathlib.Path) -> None:
    rows = results.Results("simplification")
    after = {"nodes": 13, "all_nodes": 13, "bytes": 900}
    speed = {"median": 1.25, "low": 1.2, "high": float("inf")}
    rows["digits/onnxopt"] = row(
        "onnxopt", after=after, runs=True, agrees=True, why="", speed={**speed, "high": 1.3}
    )
    rows["digits/onnxsim"] = row("onnxsim", code=1, message="Segmentation fault")
    rows["digits/onnxslim"] = row("onnxslim", after=after, runs=False, why="no such operator")
    rows["digits/onnxscript"] = row("onnxscript", code=None, seconds=400.0, odd=speed)
    again = results.Results("simplification")
    assert dict(again) == dict(rows)
    assert again["digits/onnxscript"]["odd"]["high"] is None
    page.write(again)
    text = (tmp_path / "benchmarks.md").read_text()
    assert "13 nodes, 90.0% of the bytes, 1.25x (1.20 to 1.30)" in text
    assert "fails: Segmentation fault" in text
    assert "**does not run**" in text
    assert "stopped after 400 s" in text


def test_cost_of_a_process_counts_its_children() -> None:
    block = 60_000_000
    child = f"import time; data = bytearray({block}); time.sleep(0.4)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    cost = measure([sys.executable, "-c", script], 30)
    assert cost.code == 0
    assert cost.peak_bytes > block
    assert cost.seconds > 0.4


def test_a_failing_or_slow_process_is_told() -> None:
    failed = measure([sys.executable, "-c", "raise SystemExit('no good')"], 30)
    assert (failed.code, failed.message) == (1, "no good")
    assert measure([sys.executable, "-c", "import time; time.sleep(30)"], 0.3).code is None


def test_synthetic_models_run(tmp_path: pathlib.Path) -> None:
    build_chain(tmp_path / "chain.onnx", 50)
    model = onnx.load(tmp_path / "chain.onnx")
    assert len(model.graph.node) == 50
    feed = example_feeds("chain-50", batch=2)
    assert run(model, feed)[0].shape[0] == 2
    build_transformer(tmp_path / "transformer.onnx", layers=1, width=16, heads=2, vocabulary=50)
    onnx.checker.check_model(tmp_path / "transformer.onnx")
