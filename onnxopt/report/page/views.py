"""From a document to what its page shows, by the command that it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnxopt.errors import ModelError
from onnxopt.report.page.report_view import ReportView
from onnxopt.report.run import SCHEMA_VERSION

__all__ = ["ROOM", "kind_of", "view"]

_Facts = Mapping[str, Any]
#: Characters that the longest table of a page may take, so that it stays light.
ROOM = 1_000_000


def kind_of(document: _Facts) -> str:
    """The command that a document comes from.

    Raises:
        ModelError: When it is no report, or one of a later version.
    """
    version = document.get("schema_version")
    kind = document.get("kind")
    if not isinstance(version, int) or kind not in _makers():
        raise ModelError("this is no report of onnxopt; make one with --report FILE.json")
    if version > SCHEMA_VERSION:
        raise ModelError(
            f"the report has schema version {version}, made by a later onnxopt; this one reads "
            f"versions up to {SCHEMA_VERSION}"
        )
    return str(kind)


def view(document: _Facts, index: int = 0, room: int = ROOM) -> ReportView:
    """What the page shows of a document.

    Args:
        document: The report.
        index: Its place on the page, from 0.
        room: Characters that its longest table may take.

    Raises:
        ModelError: When it is no report, or its contents are not what they should be.
    """
    kind = kind_of(document)
    try:
        return _makers()[kind](document, f"r{index}", room)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(
            f"the report of '{kind}' is damaged: {type(error).__name__} {error}"
        ) from error


def _makers() -> dict[str, Callable[[_Facts, str, int], ReportView]]:
    """By command. They are imported when asked for, since charts need the extra ``report``."""
    from onnxopt.report.page.batch_view import batch_view
    from onnxopt.report.page.bench_view import bench_view
    from onnxopt.report.page.check_view import check_view
    from onnxopt.report.page.compress_view import compress_view
    from onnxopt.report.page.distill_view import distill_view
    from onnxopt.report.page.inspect_view import inspect_view
    from onnxopt.report.page.run_view import run_view

    return {
        "optimize": run_view,
        "compress": compress_view,
        "distill": distill_view,
        "check": check_view,
        "batch": batch_view,
        "bench": bench_view,
        "inspect": inspect_view,
    }
