"""The steps of a compression that are done, in a folder, so that an interrupted one goes on.

A step is known by what was done and to which file, which is known in the same way, back to the
original; so a step that is asked for twice is taken once. Numbers that were measured on the way and
decide where it leads are written down, too: measured again they could be others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

from onnxopt.errors import ModelError
from onnxopt.report.json_file import write_text

__all__ = ["InterruptedCompressionError", "Journal", "Step"]

_MARK, _DECISIONS, _DONE = "mark", "decisions.json", "done.json"


class InterruptedCompressionError(KeyboardInterrupt):
    """The user stopped it, and the same call goes on from there."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A step that is done.

    Attributes:
        path: The model that came of it; it is not there where nothing changed.
        facts: What the step had to tell.
        seconds: How long it took when it was taken.
    """

    path: pathlib.Path
    facts: dict[str, Any]
    seconds: float


class Journal:
    """What is done of one compression.

    Args:
        folder: Where it is kept. What another compression left there is removed.
        mark: What tells one compression from another.

    Attributes:
        resumed: Whether an earlier run left something.
        replaced: Whether another compression had left something, which is removed.

    Raises:
        ModelError: When the folder is something else, or cannot be written to.
    """

    def __init__(self, folder: pathlib.Path, mark: str) -> None:
        self.folder = folder
        note = folder / _MARK
        is_ours = note.is_file()
        if folder.exists() and not is_ours and (not folder.is_dir() or any(folder.iterdir())):
            raise ModelError(
                f"{folder} is in the way: it would hold what is done so far, and is something else"
            )
        self.resumed = is_ours and note.read_text(encoding="utf-8") == mark
        self.replaced = is_ours and not self.resumed
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.replaced:
                # Stopped in the middle of this, it is still ours, and of no compression.
                write_text(note, "")
                _clear(folder, note)
        except OSError as error:
            raise ModelError(f"cannot write {folder}: {error.strerror or error}") from error
        write_text(note, mark)
        self._decisions = folder / _DECISIONS

    def step(
        self,
        what: str,
        source: pathlib.Path,
        make: Callable[[pathlib.Path], dict[str, Any]],
    ) -> Step:
        """Take a step, unless it is done.

        Args:
            what: What is done, with all that bears on it.
            source: The model that it is done to: the original, or what another step made.
            make: Writes the new model to a path; gives what there is to tell, as JSON has it. Other
                files beside that path stay where they are when it is interrupted.
        """
        key = hashlib.sha256(f"{self.name(source)}\0{what}".encode()).hexdigest()[:16]
        place = self.folder / key
        path, done = place / "model.onnx", place / _DONE
        if not done.is_file():
            place.mkdir(exist_ok=True)
            start = time.perf_counter()
            facts = make(path)
            record = {"what": what, "facts": facts, "seconds": time.perf_counter() - start}
            write_text(done, json.dumps(record))
        record = json.loads(done.read_text(encoding="utf-8"))
        return Step(path, record["facts"], record["seconds"])

    def name(self, path: pathlib.Path) -> str:
        """What a model is known by: the step that made it; empty for the original."""
        return path.parent.name if self.folder in path.parents else ""

    def decide(self, name: str, measure: Callable[[], Any]) -> Any:
        """A value, as JSON has it, that is measured once."""
        known: dict[str, Any] = {}
        if self._decisions.is_file():
            known = json.loads(self._decisions.read_text(encoding="utf-8"))
        if name not in known:
            known[name] = measure()
            write_text(self._decisions, json.dumps(known))
        return known[name]

    def remove(self) -> None:
        """Everything is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _clear(folder: pathlib.Path, note: pathlib.Path) -> None:
    """Remove all but the mark."""
    for each in folder.iterdir():
        if each.is_dir():
            shutil.rmtree(each)
        elif each != note:
            each.unlink()
