"""What every report says beside its contents, so that a page can be made from it alone."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from onnxopt.report.run import SCHEMA_VERSION

__all__ = ["document"]


def document(kind: str, contents: Mapping[str, Any], command: str = "") -> dict[str, Any]:
    """A report as it stands in a file.

    Args:
        kind: The command whose report it is.
        contents: What it found.
        command: The command line that makes it again.

    Returns:
        The contents with their schema version, kind, command, and the date in UTC.
    """
    now = datetime.datetime.now(datetime.UTC)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "command": command,
        "date": now.isoformat(timespec="seconds"),
        **contents,
    }
