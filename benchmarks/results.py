"""Results on disk: JSON by key, written after each measurement, so that a run can be resumed."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import math
import os
import pathlib
from collections.abc import Iterator, MutableMapping
from typing import Any

from onnxopt.runtime.probe import environment

__all__ = ["FOLDER", "Results"]

FOLDER = pathlib.Path(__file__).parent / "results"


class Results(MutableMapping[str, dict[str, Any]]):
    """The rows of one suite, with the machine they were measured on.

    Several processes may add rows to the same suite; what others wrote is there after the next one.

    Args:
        suite: Name of the suite and of its file.
        fresh: Forget earlier rows.
    """

    def __init__(self, suite: str, *, fresh: bool = False) -> None:
        self._path = FOLDER / f"{suite}.json"
        self._rows: dict[str, dict[str, Any]] = {}
        self._dates: dict[str, str] = {}
        self.environment: dict[str, Any] = {}
        if fresh:
            self._path.unlink(missing_ok=True)
        self._read()

    def _read(self) -> None:
        if self._path.exists():
            known = json.loads(self._path.read_text())
            self._rows, self.environment = known["rows"], known["environment"]
            self._dates = known.get("dates", {})

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._rows[key]

    def __setitem__(self, key: str, row: dict[str, Any]) -> None:
        with self._changing():
            self._rows[key] = _plain(row)
            self._dates[key] = datetime.datetime.now(datetime.UTC).date().isoformat()

    def __delitem__(self, key: str) -> None:
        with self._changing():
            del self._rows[key]
            self._dates.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Change what is on disk, while nobody else does."""
        FOLDER.mkdir(exist_ok=True)
        with (FOLDER / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._read()
            yield
            self.environment = environment(threads=1)
            document = {"environment": self.environment, "dates": self._dates, "rows": self._rows}
            text = json.dumps(document, indent=1, sort_keys=True)
            unfinished = self._path.with_suffix(".unfinished")
            unfinished.write_text(text + "\n")
            os.replace(unfinished, self._path)

    @property
    def dates(self) -> list[str]:
        """The days on which rows were measured, as far as that is known, in order."""
        return sorted(set(self._dates.values()))


def _plain(value: Any) -> Any:
    """Infinities become null, which JSON has."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
