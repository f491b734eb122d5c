import io
import sys
import time

import pytest

from onnxopt.cli import progress as display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_steps_are_shown_to_whoever_waits_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(display, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    with display.progress() as on_step:
        on_step("loading [bold]w[/bold]")
        deadline = time.monotonic() + 30
        while "[bold]w" not in terminal.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert "loading [bold]w[/bold]" in terminal.getvalue()


def test_quick_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(display, "_PATIENCE_SECONDS", 3600.0)
    with display.progress() as on_step:
        on_step("loading")
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("quiet", [True, False])
def test_nothing_is_shown_where_nobody_looks(monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    stream = Terminal() if quiet else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(display, "_PATIENCE_SECONDS", 0.0)
    with display.progress(quiet) as on_step:
        on_step("loading")
    assert stream.getvalue() == ""
