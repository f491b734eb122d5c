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


def shown(monkeypatch: pytest.MonkeyPatch, steps: list[tuple[float, str]]) -> list[str]:
    """What is said about the time left at each step, told at these seconds."""
    from rich.progress import Progress

    now = [0.0]
    view = Progress(get_time=lambda: now[0], disable=True)
    told = display._Steps(view)
    found = []
    for seconds, step in steps:
        now[0] = seconds
        told.tell(step)
        found.append(view.tasks[0].fields["left"])
    return found


def test_steps_that_say_how_far_they_are_get_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = [
        (0.0, "loading"),
        (1.0, "explaining sample 1 of 5"),
        (3.0, "explaining sample 2 of 5"),
        (7.0, "explaining sample 4 of 5"),
        (9.0, "timing"),
        (10.0, "comparing inner values, 0 of 1,200"),
        (40.0, "comparing inner values, 24 of 1,200"),
    ]
    assert shown(monkeypatch, steps) == [
        "",
        "",
        "about 8 s left",
        "about 4 s left",
        "",
        "",
        "about 25 min left",
    ]


def test_a_count_that_begins_again_is_timed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [(0.0, "trying 5 of 9"), (1.0, "trying 1 of 9"), (2.0, "trying 2 of 9")]
    assert shown(monkeypatch, steps) == ["", "", "about 8 s left"]
