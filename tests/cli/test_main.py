"""The program itself, in a process of its own: what only shows there."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from onnxopt.cli.failures import DEBUG_VARIABLE, reports_failures
from tests.cli.conftest import run

COMMANDS = (
    "optimize",
    "batch",
    "inspect",
    "check",
    "bench",
    "report",
    "passes",
    "bisect",
    "decode",
)
MAIN = (sys.executable, "-c", "from onnxopt.cli.main import main; main()")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"onnxopt {command} " in result.stdout.rpartition("Example:")[2]


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['onnxopt', '--help']\n"
        "from onnxopt.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'onnxscript', 'torch'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert command in done.stdout


def test_version() -> None:
    assert re.fullmatch(r"onnxopt \d+\.\d+\.\d+\n", run("--version").stdout)


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in run("--help").stdout


def test_output_is_plain_when_it_is_no_terminal(model: pathlib.Path) -> None:
    done = subprocess.run([*MAIN, "inspect", model], capture_output=True, check=True)
    assert b"\x1b" not in done.stdout + done.stderr


def test_reader_that_goes_away_is_no_trouble(model: pathlib.Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*MAIN, "inspect", model], stdout=write, stderr=subprocess.PIPE, timeout=60
        )
    finally:
        os.close(write)
    assert done.stderr == b""
    assert done.returncode == 1


def test_interrupt_exits_130_and_writes_nothing(
    model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "out.onnx"
    arguments = ["optimize", str(model), str(output), "--seconds", "60"]
    process = subprocess.Popen([*MAIN, *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.onnx.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "onnxopt: error: interrupted; nothing was written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def raise_something() -> None:
    raise ZeroDivisionError("something\nunforeseen")


def test_unexpected_error_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)
    with pytest.raises(typer.Exit) as caught:
        reports_failures(2)(raise_something)()
    assert caught.value.exit_code == 2
    said = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: something unforeseen" in said
    assert "please report it" in said
    assert said.count("\n") == 1


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, "0")
    assert "Traceback" not in run("inspect", tmp_path / "none.onnx").stderr
    assert "Traceback" in run("--debug", "inspect", tmp_path / "none.onnx").stderr
