"""How a report came about: the command, the machine, the versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["circumstances"]

_Facts = Mapping[str, Any]


def circumstances(document: _Facts) -> Iterator[tuple[str, str]]:
    """What any report says of how it came about."""
    if document.get("command"):
        yield "command", document["command"]
    environment = document.get("environment") or {}
    if environment.get("processor"):
        sets = ", ".join(environment.get("instruction_sets", ()))
        yield (
            "processor",
            f"{environment['processor']}, {environment.get('cores')} cores"
            + (f" ({sets})" if sets else ""),
        )
    if environment.get("threads"):
        yield "threads for one operator", str(environment["threads"])
    if environment.get("platform"):
        yield "platform", environment["platform"]
    versions = environment.get("versions", {})
    if versions:
        parts = [f"{name} {number}" for name, number in versions.items() if number]
        yield "versions", ", ".join([f"Python {environment.get('python')}", *parts])
    if document.get("date"):
        yield "date", document["date"]
