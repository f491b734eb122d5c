"""What the page shows of one report: a heading, figures, and sections of tables and charts."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from onnxopt.report.page.figures import Figure

__all__ = ["ReportView", "short_name"]

_Facts = Mapping[str, Any]


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


def short_name(path: str) -> str:
    """The last part of a path."""
    return pathlib.PurePath(path).name or path
