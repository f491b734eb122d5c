"""From a document to what its page shows, by the command that it comes from."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from onnxopt.errors import ModelError
from onnxopt.report.page.figures import Figure
from onnxopt.report.run import SCHEMA_VERSION

__all__ = ["ROOM", "ReportView", "kind_of", "short_name", "view"]

_Facts = Mapping[str, Any]
#: Characters that the longest table of a page may take, so that it stays light.
ROOM = 1_000_000


@dataclasses.dataclass
class ReportView:
    """What the page shows of one report.

    Attributes:
        prefix: Begins the identifiers of its elements.
        kind: The command that it comes from.
        title: Heading.
        lead: The report in a sentence or two.
        cards: The most important figures: label, value, explanation, and whether it is good, bad
            or neither.
        sections: Headings of the sections by their names, in order.
        parts: What the template of its kind shows.
        figures: Its charts.
        data: What charts are drawn from that share it, by its name.
        histograms: Bins and chosen ranges by tensor, for the page's script.
        tried: What a click on a point or row of the search shows.
        document: The report itself.
    """

    prefix: str
    kind: str
    title: str
    document: _Facts
    lead: list[str] = dataclasses.field(default_factory=list)
    cards: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
    sections: dict[str, str] = dataclasses.field(default_factory=dict)
    parts: dict[str, Any] = dataclasses.field(default_factory=dict)
    figures: list[Figure] = dataclasses.field(default_factory=list)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    histograms: dict[str, Any] = dataclasses.field(default_factory=dict)
    tried: list[Any] = dataclasses.field(default_factory=list)

    def add(self, section: str, heading: str, **parts: Any) -> None:
        """Add a section; charts among its parts, alone or in lists, are drawn when it is shown."""
        self.sections[section] = heading
        self.parts[section] = parts
        for part in parts.values():
            for each in part if isinstance(part, list) else [part]:
                if isinstance(each, Figure):
                    self.figures.append(each)


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


def short_name(path: str) -> str:
    """The last part of a path."""
    return pathlib.PurePath(path).name or path


def _makers() -> dict[str, Callable[[_Facts, str, int], ReportView]]:
    from onnxopt.report.page import (
        batch_view,
        bench_view,
        check_view,
        compress_view,
        distill_view,
        inspect_view,
        run_view,
    )

    return {
        "optimize": run_view.run_view,
        "compress": compress_view.compress_view,
        "distill": distill_view.distill_view,
        "check": check_view.check_view,
        "batch": batch_view.batch_view,
        "bench": bench_view.bench_view,
        "inspect": inspect_view.inspect_view,
    }
