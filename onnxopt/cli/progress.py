"""What is being done, on stderr, for whoever waits longer than a moment at a terminal.

A step that says how far it is, such as ``comparing inner values, 24 of 300``, gets the time that is
left; any other gets the time that has passed.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["progress"]

#: Work that is over by then needs no display.
_PATIENCE_SECONDS = 2.0
#: How far a step is; what stands around it says whether the next step is of the same kind.
_COUNT = re.compile(r"\b([\d,]+) of ([\d,]+)\b")


@contextlib.contextmanager
def progress(quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Show steps while the block runs; yields the function to tell them to."""
    if quiet or not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    display = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),  # names may look like markup
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        console=Console(stderr=True, markup=False),
        transient=True,
    )
    steps = _Steps(display)
    timer = threading.Timer(_PATIENCE_SECONDS, display.start)
    timer.daemon = True
    timer.start()
    try:
        yield steps.tell
    finally:
        timer.cancel()
        timer.join()
        display.stop()


class _Steps:
    """The one line of the display."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._task: TaskID = display.add_task("starting", total=None, left="")
        self._kind = ""
        self._since = 0.0
        self._first = 0

    def tell(self, step: str) -> None:
        """Show a step, with the time left if it says how far it is."""
        count = _COUNT.search(step)
        self._display.update(self._task, description=step, left=self._left(step, count))

    def _left(self, step: str, count: re.Match[str] | None) -> str:
        if count is None:
            self._kind = ""
            return ""
        number, total = (int(text.replace(",", "")) for text in count.groups())
        kind, now = step.partition(count.group())[0], self._display.get_time()
        if kind != self._kind or number < self._first:
            self._kind, self._since, self._first = kind, now, number
        if number == self._first:
            return ""
        seconds = (now - self._since) / (number - self._first) * max(0, total + 1 - number)
        return f"about {_plain(seconds)} left"


def _plain(seconds: float) -> str:
    """A time to wait, no more exact than it can be foretold."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
