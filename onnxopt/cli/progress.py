"""What is being done, on stderr, for whoever waits longer than a moment at a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

__all__ = ["progress"]

#: Work that is over by then needs no display.
_PATIENCE_SECONDS = 2.0


@contextlib.contextmanager
def progress(quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Show steps while the block runs; yields the function to tell them to."""
    if quiet or not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console
    from rich.text import Text

    status = Console(stderr=True, markup=False).status("starting")
    timer = threading.Timer(_PATIENCE_SECONDS, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda step: status.update(Text(step))  # a plain str would be read as markup
    finally:
        timer.cancel()
        timer.join()
        status.stop()
