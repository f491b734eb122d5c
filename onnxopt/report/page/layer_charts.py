"""Charts of layers: the slowest, the noisiest, where the bytes and the zeros are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from onnxopt.report.formats import NO_SIGNAL
from onnxopt.report.page.figures import (
    Figure,
    figure,
    shortened,
    unit_of_bytes,
    unit_of_time,
)

__all__ = [
    "bytes_chart",
    "fewer_bins",
    "histogram_chart",
    "layer_rows",
    "noise_chart",
    "slowest_chart",
    "zeros_chart",
]

_Facts = Mapping[str, Any]
#: So many of the slowest layers are drawn.
_SLOWEST = 15
#: So many bins of a histogram are kept; more cannot be told apart on a page.
_BINS = 128


def slowest_chart(name: str, layers: Sequence[_Facts]) -> Figure | None:
    """The layers that take longest, with what they took in the original."""
    timed = [each for each in layers if each.get("seconds")]
    if not timed:
        return None
    total = sum(each["seconds"] for each in timed)
    shown = sorted(timed, key=lambda each: -each["seconds"])[:_SLOWEST]
    largest = max(max(each["seconds"], each.get("seconds_before") or 0.0) for each in shown)
    factor, unit = unit_of_time(largest)
    rows = [
        {
            "place": index,
            "layer": each["name"],
            "operator": each.get("operator", ""),
            "label": shortened(each["name"]),
            "time": each["seconds"] * factor,
            "before": None
            if each.get("seconds_before") is None
            else each["seconds_before"] * factor,
            "share": each["seconds"] / total,
        }
        for index, each in enumerate(shown)
    ]
    labels = {str(row["place"]): row["label"] for row in rows}
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=alt.Y(
            "place:O",
            title=None,
            axis=alt.Axis(labelOverlap=False, labelExpr=f"{_literal(labels)}[datum.label]"),
        ),
        tooltip=[
            alt.Tooltip("layer:N"),
            alt.Tooltip("operator:N"),
            alt.Tooltip("time:Q", format=".4~g", title=f"time ({unit})"),
            alt.Tooltip("before:Q", format=".4~g", title=f"in the original ({unit})"),
            alt.Tooltip("share:Q", format=".1%", title="share of the run"),
        ],
    )
    bars = base.mark_bar(color="var(--after)").encode(
        x=alt.X("time:Q", title=f"time in one run ({unit})")
    )
    ticks = base.mark_tick(color="var(--ink)", thickness=2).encode(x="before:Q")
    caption = "The slowest layers; the tick is what the layer of that name took in the original."
    return figure(name, bars + ticks, caption, 50 + 20 * len(rows))


def layer_rows(layers: Sequence[_Facts]) -> tuple[list[dict[str, Any]], str]:
    """What the charts of all layers are drawn from, once for all, and the unit of its bytes."""
    largest = max(
        (
            max(each.get("weight_bytes") or 0, each.get("weight_bytes_before") or 0)
            for each in layers
        ),
        default=0,
    )
    size, unit = unit_of_bytes(largest)
    rows = []
    weighted = 0
    for index, each in enumerate(layers):
        row: dict[str, Any] = {
            "place": index + 1,
            "layer": each["name"],
            "operator": each.get("operator", ""),
        }
        if each.get("sqnr_db") is not None and each["sqnr_db"] > NO_SIGNAL:
            row["noise"] = _short(each["sqnr_db"])
            row["precision"] = each.get("precision", "unknown")
        if each.get("weight_bytes"):
            weighted += 1
            row["weighted"] = weighted
            row["size"] = _short(each["weight_bytes"] / size)
            before = each.get("weight_bytes_before")
            if before is not None and abs(before - each["weight_bytes"]) > 0.01 * before:
                row["before"] = _short(before / size)
            if each.get("zeros") is not None:
                row["zeros"] = _short(100 * each["zeros"])
        if len(row) > 3:
            rows.append(row)
    return rows, unit


def noise_chart(name: str, data: str, rows: Sequence[_Facts]) -> Figure | None:
    """Signal to noise layer by layer.

    Args:
        name: Identifier.
        data: Name of the data that the page's script hands to the chart: the rows.
        rows: What `layer_rows` gave.
    """
    if not any("noise" in row for row in rows):
        return None
    chart = (
        alt.Chart(alt.NamedData(name=data))
        .transform_filter("isValid(datum.noise)")
        .mark_point(filled=True, size=45, opacity=0.9, aria=False)
        .encode(
            x=alt.X("place:Q", title="layer, in the order of the run"),
            y=alt.Y("noise:Q", title="signal to noise (dB)", scale=alt.Scale(zero=False)),
            color=alt.Color(
                "precision:N",
                title="precision",
                scale=alt.Scale(
                    range=["var(--after)", "var(--warm)", "var(--good)", "var(--before)"]
                ),
            ),
            shape=alt.Shape("precision:N", title="precision"),
            tooltip=[
                alt.Tooltip("layer:N"),
                alt.Tooltip("operator:N"),
                alt.Tooltip("precision:N"),
                alt.Tooltip("noise:Q", format=".1f", title="signal to noise (dB)"),
            ],
        )
    )
    caption = "How true each layer's output is to the original's; the lowest are to blame first."
    return figure(name, chart, caption)


def bytes_chart(name: str, data: str, rows: Sequence[_Facts], unit: str) -> Figure | None:
    """Bytes of weights layer by layer, with those of the original.

    Args:
        name: Identifier.
        data: Name of the data that the page's script hands to the chart: the rows.
        rows: What `layer_rows` gave.
        unit: Its unit of bytes.
    """
    count = sum("size" in row for row in rows)
    if not count:
        return None
    base = (
        alt.Chart(alt.NamedData(name=data))
        .transform_filter("isValid(datum.size)")
        .encode(
            x=_places(count),
            tooltip=[
                alt.Tooltip("layer:N"),
                alt.Tooltip("operator:N"),
                alt.Tooltip("size:Q", format=".4~g", title=f"weights ({unit})"),
                alt.Tooltip("before:Q", format=".4~g", title=f"in the original ({unit})"),
            ],
        )
    )
    width = _bar_width(count)
    chart: alt.Chart | alt.LayerChart = base.mark_bar(
        color="var(--after)", width=width, aria=False
    ).encode(y=alt.Y("size:Q", title=f"weights ({unit})"))
    if any("before" in row for row in rows):
        chart = chart + base.transform_filter("isValid(datum.before)").mark_tick(
            color="var(--ink)", thickness=1.5, width=width + 2, aria=False
        ).encode(y="before:Q")
    caption = "Bytes of weights by layer; a tick is the original's where it had another number."
    return figure(name, chart, caption, 220)


def zeros_chart(name: str, data: str, rows: Sequence[_Facts]) -> Figure | None:
    """Share of weights that are zero, layer by layer.

    Args:
        name: Identifier.
        data: Name of the data that the page's script hands to the chart: the rows.
        rows: What `layer_rows` gave.
    """
    if not any("zeros" in row for row in rows):
        return None
    count = sum("size" in row for row in rows)
    chart = (
        alt.Chart(alt.NamedData(name=data))
        .transform_filter("isValid(datum.zeros)")
        .mark_bar(color="var(--warm)", width=_bar_width(count), aria=False)
        .encode(
            x=_places(count),
            y=alt.Y("zeros:Q", title="zeros (% of the weights)"),
            tooltip=[
                alt.Tooltip("layer:N"),
                alt.Tooltip("operator:N"),
                alt.Tooltip("zeros:Q", format=".2f", title="zeros (%)"),
            ],
        )
    )
    return figure(name, chart, "Share of the weights that are zero, by layer.", 200)


def _places(count: int) -> alt.X:
    """The axis of layers with weights."""
    return alt.X(
        "weighted:Q",
        title="layer with weights, in the order of the run",
        scale=alt.Scale(domain=[0, count + 1], nice=False),
    )


def _bar_width(count: int) -> float:
    return max(0.7, min(8.0, 400 / count))


def _short(number: float) -> float:
    """No more digits than a chart can show."""
    return float(f"{number:.4g}")


def histogram_chart(name: str) -> Figure:
    """The frame of a histogram; the page's script fills it with the tensor that is chosen."""
    bins = alt.Chart(alt.NamedData(name="bins"))
    bars = bins.mark_bar(color="var(--after)").encode(
        x=alt.X("start:Q", title="value", bin="binned"),
        x2="end:Q",
        y=alt.Y("count:Q", title="number of values (square-root scale)").scale(type="sqrt"),
        tooltip=[
            alt.Tooltip("start:Q", format=".4~g", title="from"),
            alt.Tooltip("end:Q", format=".4~g", title="to"),
            alt.Tooltip("count:Q", format=",", title="values"),
        ],
    )
    ends = (
        alt.Chart(alt.NamedData(name="ends"))
        .mark_rule(color="var(--bad)", strokeWidth=2, strokeDash=[6, 3])
        .encode(x="value:Q", tooltip=[alt.Tooltip("value:Q", format=".5~g", title="end of range")])
    )
    caption = "How the values are spread; the dashed lines are the ends of the range that is kept."
    return figure(name, bars + ends, caption)


def fewer_bins(counts: Sequence[int], edges: Sequence[float]) -> tuple[list[int], list[float]]:
    """Neighbouring bins put together, so that there are at most `_BINS`."""
    step = -(-len(counts) // _BINS)
    starts = range(0, len(counts), step)
    return (
        [sum(counts[start : start + step]) for start in starts],
        [*(edges[start] for start in starts), edges[-1]],
    )


def _literal(table: Mapping[str, str]) -> str:
    """A table as an expression of Vega."""
    return json.dumps(table, ensure_ascii=False)
