import json
import pathlib
import re

import pytest

from tests.cli.conftest import run

COMMANDS = ("optimize", "bench", "check", "inspect")


def arguments_of(command: str, model: pathlib.Path, folder: pathlib.Path) -> tuple[object, ...]:
    match command:
        case "optimize":
            return model, folder / "out.onnx", "--seconds", "0"
        case "bench":
            return model, model, "--seconds", "0"
        case "check":
            return model, model
    return model, "--channels"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_measures_writes_json_and_a_page(
    command: str, model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    written = tmp_path / "run.json", tmp_path / "run.html"
    arguments = (
        *arguments_of(command, model, tmp_path),
        "--report",
        written[0],
        "--report",
        written[1],
    )
    result = run(command, *arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(written[0].read_text())
    assert document["kind"] == command
    assert document["schema_version"] == 1
    assert document["command"] == " ".join(["onnxopt", command, *map(str, arguments)])
    assert document["environment"]["versions"]["onnxruntime"]
    page = written[1].read_text()
    assert str(tmp_path) in page  # in the command
    assert page.count("<h2") >= 2
    again = tmp_path / "again.html"
    assert run("report", written[0], again).exit_code == 0
    assert _without_date(again.read_text()) == _without_date(page)


def _without_date(page: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:+]+", "", page)


def test_optimize_tells_memory_and_layers(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    report = tmp_path / "run.json"
    result = run("optimize", model, tmp_path / "out.onnx", "--seconds", "0", "--report", report)
    assert "peak memory" in result.stdout
    document = json.loads(report.read_text())
    for side in ("before", "after"):
        assert document[side]["peak_memory_bytes"] > document["idle_memory_bytes"] > 0
    assert any(layer["operator"] == "MatMul" for layer in document["layers"])


def test_two_reports_are_compared(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    for path in (first, second):
        run("optimize", model, tmp_path / "out.onnx", "--seconds", "0", "--report", path)
    assert run("report", first, second, tmp_path / "two.html").exit_code == 0
    assert "Two reports compared" in (tmp_path / "two.html").read_text()


def test_arguments_that_make_no_sense(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for arguments in (["a.json"], ["a.html"], ["a.json", "b.json"], ["a.html", "b.html"]):
        result = run("report", *arguments)
        assert result.exit_code == 2
        assert "report.json page.html" in re.sub(r"[│\s]+", " ", result.stderr)


def test_a_report_that_cannot_be_written_is_said_before_the_work(
    model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for command in COMMANDS:
        arguments = (
            *arguments_of(command, model, tmp_path),
            "--report",
            tmp_path / "none" / "run.html",
        )
        result = run(command, *arguments)
        assert result.exit_code in (1, 2), command
        assert "does not exist" in result.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_no_report_is_one_sentence(tmp_path: pathlib.Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    result = run("report", tmp_path / "run.json", tmp_path / "page.html")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "run.json: this is no report" in result.stderr
    assert run("report", tmp_path / "gone.json", tmp_path / "page.html").exit_code == 1
