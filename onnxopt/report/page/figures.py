"""What all charts share: how they look, how wide they are, how they become part of the page.

Colours are variables of the page's style, so that a chart is dark or light as the page is.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt

__all__ = ["BEFORE_AFTER", "Figure", "figure", "shortened", "unit_of_bytes", "unit_of_time"]

#: Colours of the original and the result.
BEFORE_AFTER = {"original": "var(--before)", "result": "var(--after)"}
#: Labels of layers are cut to so many characters; the whole name is in what a pointer shows.
_LABEL = 34


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart of the page.

    Attributes:
        id: Its element's identifier.
        spec: Vega-Lite specification.
        caption: What it shows, a sentence or two.
        height: Height in pixels that is kept free for it.
    """

    id: str
    spec: dict[str, Any]
    caption: str
    height: int


def figure(name: str, chart: alt.Chart | alt.LayerChart, caption: str, height: int = 260) -> Figure:
    """Finish a chart: as wide as the page lets it be, in the page's colours."""
    axis = {
        "labelColor": "var(--ink)",
        "titleColor": "var(--ink)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "gridColor": "var(--line)",
        "gridOpacity": 0.6,
        "labelLimit": 190,
        "titleFontWeight": "normal",
        "titleFontSize": 12,
        "labelFontSize": 11,
        "labelOverlap": "greedy",
        "labelSeparation": 4,
    }
    legend = {
        "labelColor": "var(--ink)",
        "titleColor": "var(--ink)",
        "orient": "top",
        "titleFontWeight": "normal",
        "symbolStrokeColor": "var(--ink)",
    }
    finished = chart.properties(width="container", height=height).configure(
        background="transparent",
        font="system-ui, sans-serif",
        autosize={"type": "fit", "contains": "padding"},
        axis=axis,
        legend=legend,
        view={"stroke": None},
        text={"color": "var(--ink)"},
    )
    return Figure(name, finished.to_dict(), caption, height)


def shortened(name: str) -> str:
    """A name that leaves room for the chart beside it; the ends tell most."""
    if len(name) <= _LABEL:
        return name
    return f"{name[: _LABEL // 3]}…{name[-(2 * _LABEL // 3 - 1) :]}"


def unit_of_time(largest: float) -> tuple[float, str]:
    """What to multiply seconds by so that the largest is easy to read, and the unit."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if largest * factor >= 1:
            return factor, unit
    return 1e6, "µs"


def unit_of_bytes(largest: float) -> tuple[float, str]:
    """What to divide bytes by so that the largest is easy to read, and the unit."""
    for size, unit in ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB")):
        if largest >= size:
            return size, unit
    return 1.0, "B"
