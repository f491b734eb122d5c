"""The benchmarks' own machinery, on small things; their figures are not tested."""

import importlib
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import page, peers, plots, quoted, results, scaling
from benchmarks import run as bench
from benchmarks.processes import measure
from benchmarks.zoo import example_feeds
from benchmarks.zoo_synthetic import build_chain, build_transformer
from onnxopt.calibration import Histogram, Range, Rows
from onnxopt.data import FeedSource
from onnxopt.model import from_proto
from onnxopt.parallel import ALONE
from onnxopt.regions import Product, products
from onnxopt.samples import Samples
from tests.differential import parse, run


@pytest.fixture(autouse=True)
def _folders(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(page, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(page, "_PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setattr(plots, "FOLDER", tmp_path / "plots")


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


class TestParts:
    def _chosen(self, *names: str, **options: Any) -> dict[str, list[str] | None]:
        parts = [part for part in bench.PARTS if not names or part.name in names]
        given = {"data": None, "models": (), "tools": (), "fresh": False, **options}
        found = bench.commands(parts, **given)
        return {part.name: None if line is None else line[1:] for part, line in found}

    def test_all_of_them_with_samples_or_without(self) -> None:
        without, data = self._chosen(), self._chosen(data=pathlib.Path("samples"))
        assert without.keys() == data.keys() == {part.name for part in bench.PARTS}
        assert {name for name, line in without.items() if line is None} == {
            part.name for part in bench.PARTS if part.needs_data
        }
        assert data["quantization"] == ["-m", "benchmarks.quantization", "samples"]

    def test_one_model_or_one_peer(self) -> None:
        found = self._chosen(data=pathlib.Path("d"), models=["minilm"], tools=["onnxsim"])
        assert found == {
            "simplification": [
                *("-m", "benchmarks.simplification"),
                *("--models", "minilm", "--tools", "onnxsim"),
            ]
        }
        found = self._chosen(data=pathlib.Path("d"), models=["minilm"], fresh=True)
        assert found["channels-oneshot-minilm"] == [
            *("-m", "benchmarks.channels", "oneshot", "--model", "minilm", "--data", "d", "--fresh")
        ]
        assert "channels-oneshot-ocr-rec" not in found
        assert "channels-exact" not in found

    @pytest.mark.parametrize("part", bench.PARTS, ids=lambda part: part.name)
    def test_what_can_be_chosen_is_what_the_command_takes(self, part: bench.Part) -> None:
        if part.module == "benchmarks.channels":
            pytest.importorskip("torch")
        module = importlib.import_module(part.module)
        arguments = ["DATA" if each == "DATA" else each for each in part.arguments]
        arguments += ["--models", *part.models] if part.models else []
        arguments += ["--tools", *part.tools] if part.tools else []
        arguments += ["--fresh"] if part.fresh else []
        with pytest.raises(SystemExit) as ended:
            module.main([*arguments, "--help"])
        assert ended.value.code == 0
        assert 'if __name__ == "__main__"' in pathlib.Path(str(module.__file__)).read_text()

    def test_a_part_that_fails_stops_no_other(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        parts = (
            bench.Part("first", "benchmarks.no_such_module", 1),
            bench.Part("second", "this", 1),
            bench.Part("third", "this", 1, ("DATA",)),
            bench.Part("fourth", "this", 1, timed=False),
            bench.Part("fifth", "benchmarks.no_such_module", 2, timed=False),
        )
        monkeypatch.setattr(bench, "PARTS", parts)
        monkeypatch.setattr(bench, "_write_pages", lambda: print("pages", flush=True))
        with pytest.raises(SystemExit, match="failed: first, fifth;"):
            bench.main([])
        told = capsys.readouterr().out
        assert "second: done" in told
        assert "third: left out" in told
        assert "fourth: done" in told
        assert told.index("second: done") < told.index("fourth: -m this")
        assert told.endswith("pages\n")

    def test_how_long_they_take_together(self) -> None:
        accuracy = [bench.Part(name, "this", int(name), timed=False) for name in ("1", "4", "2")]
        assert bench._together([bench.Part("alone", "this", 5), *accuracy]) == 5 + 4
        assert bench._together(bench.PARTS) < 120

    def test_a_part_beside_others_stays_on_its_core(
        self, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        core = bench._lanes()[-1]
        command = [sys.executable, "-c", "import os; print('on', os.sched_getaffinity(0))"]
        assert bench._run(bench.Part("one", "this", 1, timed=False), command, core)
        assert f"on {{{core}}}" in capfd.readouterr().out


def test_an_environment_of_peers_that_was_not_finished_is_made_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def install(command: list[Any], *, check: bool) -> None:
        ran.append(str(command[2]))
        if command[2] == "pip" and len(ran) < 3:
            raise OSError("interrupted")

    monkeypatch.setattr(subprocess, "run", install)
    with pytest.raises(OSError, match="interrupted"):
        peers.peer_python(tmp_path / "made", tmp_path / "requirements.txt")
    peers.peer_python(tmp_path / "made", tmp_path / "requirements.txt")
    assert peers.peer_python(tmp_path / "made").endswith("made/bin/python")
    assert ran == ["venv", "pip", "venv", "pip"]


def test_two_processes_add_to_the_same_results() -> None:
    one, other = results.Results("sparsity"), results.Results("sparsity")
    one["a"], other["b"] = {"value": 1}, {"value": 2}
    assert set(other) == set(results.Results("sparsity")) == {"a", "b"}
    del one["a"]
    assert set(results.Results("sparsity", fresh=True)) == set()


def test_a_network_that_cannot_be_measured_is_told() -> None:
    importer = pytest.importorskip("benchmarks.importer")
    rows = results.Results("importer")
    failed = {"imports": False, "message": "no such package"}
    rows["minilm/training"] = {"seconds": failed, "native_peak": failed, "ours_peak": failed}
    assert "| minilm | cannot be measured: no such package |" in importer.table(rows)


def test_what_is_not_measured_stays_quoted(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    marks = "".join(f"<!-- {name} -->\nold\n<!-- end -->\n" for name in ("demo", "simplified"))
    readme.write_text(f"{marks}<!-- quantized -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(quoted, "_README", readme)
    quoted.write()
    text = readme.read_text()
    assert text.startswith("<!-- demo -->\nold\n<!-- end -->\n<!-- simplified -->\n| model")
    assert text.endswith("<!-- end -->\nafter\n")


def test_plots_of_what_there_is(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("vl_convert")
    rows = results.Results("quantization")
    rows["digits/onnxopt"] = {"speed": [2.0, 1.9, 2.1], "sqnr_db": 21.0}
    rows["digits/ort-dynamic"] = {"failure": "fails"}
    plots.write()
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["quantization.svg"]
    text = (tmp_path / "plots" / "quantization.svg").read_text()
    assert "signal to noise of the worst output (dB)" in text


def test_rows_have_a_date_and_survive_a_machine_that_changes() -> None:
    rows = results.Results("simplification")
    rows["digits/onnxopt"] = row("onnxopt")
    again = results.Results("simplification")
    assert len(again.dates) == 1
    assert again.environment["processor"]
    del again["digits/onnxopt"]
    assert not results.Results("simplification").dates


def test_what_scaling_observes(tmp_path: pathlib.Path) -> None:
    net = from_proto(parse("g (float[n, 4] x) => (float[n, 3] y) { y = MatMul(x, w) }", _WEIGHTS))
    np.savez(tmp_path / "x.npz", x=np.ones((5, 4), np.float32))
    samples = Samples(FeedSource(net, tmp_path / "x.npz").files)
    found = [each for each in products(net.graph) if isinstance(each, Product)]
    seen = scaling._observed(net, found, samples, ALONE)
    assert seen.samples == 5
    assert {type(spec) for spec in seen.observers["x"]} == {Range, Histogram, Rows}


_WEIGHTS = {"w": np.ones((4, 3), np.float32)}


def test_the_ablation_measures_what_is_missing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import ablation
    from tests.training import models

    teacher = models.balanced(models.convolutional(16))
    paths = models.write(tmp_path, teacher=teacher)
    work = tmp_path / "work"
    work.mkdir()
    paths["data"].rename(work / "test.npz")
    inputs = np.tile(models.images(), (2, 1, 1, 1))
    labels = run(teacher, {"image": inputs})[0].argmax(axis=1)
    np.savez(work / "train.npz", image=inputs, label=labels)
    recipe = tmp_path / "recipe.toml"
    loop = "steps = 30\npatience = 0\nlearning-rate = 0.02"
    recipe.write_text(f"amount = 0.5\n[distill.training]\n{loop}\n")
    monkeypatch.setattr(ablation, "_TEACHER", paths["teacher"])
    monkeypatch.setattr(ablation, "_RECIPE", recipe)
    monkeypatch.setattr(ablation, "_RACE_SECONDS", 0.1)
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- ablation -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(ablation, "_PAGE", page)
    command = [str(tmp_path), "--work", str(work), "--seeds", "0"]
    ablation.main([*command, "--trainings", "both"])
    found = results.Results("ablation")
    assert set(found) == {"original", "pruned", "pruned/int8", "both/0", "both/0/int8"}
    assert found["original"]["correct"] == found["original"]["images"] == 300
    assert found["pruned"]["correct"] < found["both/0"]["correct"]
    assert found["both/0"]["steps"] == 30
    assert found["both/0/int8"]["bytes"] < found["original"]["bytes"]
    assert len(found["both/0/int8"]["speed"]) == 3
    monkeypatch.setattr(ablation, "_TEACHER", tmp_path / "gone.onnx")
    ablation.main([*command, "--trainings", "both"])  # nothing is measured twice
    written = page.read_text()
    assert written.startswith("before\n<!-- ablation -->\n| |")
    assert written.endswith("<!-- end -->\nafter\n")
    assert "| the teacher | 100.00% |" in written
    assert "old" not in written


def test_a_small_process_of_a_large_one_has_a_small_peak() -> None:
    ballast = np.ones(1 << 25)  # 256 MiB, which a child's getrusage would begin with
    code = "from benchmarks.processes import own_peak_kib; print(own_peak_kib())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 0 < int(done.stdout) < ballast.nbytes // 1024
