"""What a terminal shows: widths, colours, completion. Run in a pseudo-terminal."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

pty = pytest.importorskip("pty", reason="needs pseudo-terminals")
MAIN = (sys.executable, "-c", "from onnxopt.cli.main import main; main()")
#: Colours of letters and backgrounds; bold and dim are none.
COLOUR = re.compile(r"\x1b\[(?:[\d;]*;)?(?:3[0-7]|4[0-7]|9[0-7]|38|48)[;m]")
ESCAPES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


def at_terminal(*arguments: object, columns: int = 100, **variables: str) -> str:
    """Run the program at a terminal; what it writes to it."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS")
    }
    process = subprocess.Popen(
        [*MAIN, *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**kept, "TERM": "xterm-256color", **variables},
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the program has gone
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait(timeout=60) == 0, written.decode()
    return written.decode()


def widest(text: str) -> int:
    return max(len(line.rstrip()) for line in ESCAPES.sub("", text).splitlines())


@pytest.mark.parametrize(("columns", "most"), [(200, 100), (100, 100), (60, 60)])
def test_tables_are_no_wider_than_100_columns_or_the_terminal(
    model: pathlib.Path, columns: int, most: int
) -> None:
    assert widest(at_terminal("inspect", model, columns=columns)) <= most
    assert widest(at_terminal("passes", columns=columns)) <= most
    assert widest(at_terminal("optimize", "--help", columns=columns)) <= most


def test_no_color_is_obeyed() -> None:
    assert COLOUR.search(at_terminal("--help"))
    assert not COLOUR.search(at_terminal("--help", NO_COLOR="1"))
    assert not COLOUR.search(at_terminal("passes", NO_COLOR="1"))


def test_a_report_at_a_terminal_has_no_colour_without_need(model: pathlib.Path) -> None:
    assert not COLOUR.search(at_terminal("inspect", model, NO_COLOR="1"))


def completed(words: str) -> list[str]:
    """What bash would offer after these words."""
    done = subprocess.run(
        [*MAIN],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "_ONNXOPT_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
    )
    return done.stdout.split()


def test_commands_and_options_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["onnxopt"])
    assert completed("onnxopt opt") == ["optimize"]
    assert "--attribution" in completed("onnxopt check --att")


def test_passes_are_completed() -> None:
    assert completed("onnxopt passes fuse-aff") == ["fuse-affine"]
    assert completed("onnxopt optimize --passes fold-cons") == ["fold-constants"]
    assert completed("onnxopt optimize --passes exact,fuse-aff") == ["exact,fuse-affine"]
    assert "exact" in completed("onnxopt bisect --passes ex")
