"""Charts of a run as a whole: latency, kernels, what was tried, the pipeline, stages, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from onnxopt.report.formats import NO_SIGNAL
from onnxopt.report.page.figures import (
    BEFORE_AFTER,
    Figure,
    figure,
    shortened,
    unit_of_bytes,
    unit_of_time,
)

__all__ = [
    "curve_charts",
    "kernel_chart",
    "latency_chart",
    "stage_chart",
    "tradeoff_chart",
    "trail_chart",
]

_Facts = Mapping[str, Any]
#: An axis of names that leaves none of them out.
_ALL_LABELS = alt.Axis(labelOverlap=False)
#: So many kernels are drawn.
_KERNELS = 12


def _colour(field: str = "model", domain: Sequence[str] = ("original", "result")) -> alt.Color:
    scale = alt.Scale(domain=list(domain), range=[BEFORE_AFTER[name] for name in domain])
    return alt.Color(f"{field}:N", scale=scale, title=None)


def latency_chart(name: str, times: Mapping[str, _Facts]) -> Figure:
    """The median of each model with its spread.

    Args:
        name: Identifier.
        times: Latency by model; the first is the one that others are held against.
    """
    factor, unit = unit_of_time(max(each["high"] for each in times.values()))
    rows = [
        {
            "model": shortened(model),
            "name": model,
            **{key: each[key] * factor for key in ("low", "median", "high")},
        }
        for model, each in times.items()
    ]
    first = rows[0]["model"]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=alt.Y("model:N", title=None, sort=None),
        color=alt.condition(
            alt.datum.model == first, alt.value("var(--before)"), alt.value("var(--after)")
        ),
        tooltip=[
            alt.Tooltip("name:N", title="model"),
            alt.Tooltip("median:Q", format=".4~g", title=f"median ({unit})"),
            alt.Tooltip("low:Q", format=".4~g", title=f"10th percentile ({unit})"),
            alt.Tooltip("high:Q", format=".4~g", title=f"90th percentile ({unit})"),
        ],
    )
    bars = base.mark_rule(strokeWidth=3).encode(
        x=alt.X("low:Q", title=f"time of one run ({unit})", scale=alt.Scale(zero=True)),
        x2="high:Q",
    )
    points = base.mark_point(filled=True, size=120, opacity=1).encode(x="median:Q")
    caption = "Median time of one run; the line goes from the 10th to the 90th percentile."
    return figure(name, bars + points, caption, 50 + 34 * len(rows))


def kernel_chart(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> Figure:
    """Time by operator that the runtime chose, original beside result."""
    total = {key: max(before.get(key, 0.0), after.get(key, 0.0)) for key in {**before, **after}}
    shown = sorted(total, key=lambda key: -total[key])[:_KERNELS]
    factor, unit = unit_of_time(total[shown[0]])
    rows = [
        {"kernel": key, "model": model, "time": times.get(key, 0.0) * factor}
        for key in shown
        for model, times in (("original", before), ("result", after))
    ]
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("time:Q", title=f"time in one run ({unit})"),
            y=alt.Y("kernel:N", sort=shown, title=None, axis=_ALL_LABELS),
            yOffset=alt.YOffset("model:N", sort=["original", "result"]),
            color=_colour(),
            tooltip=[
                alt.Tooltip("kernel:N"),
                alt.Tooltip("model:N"),
                alt.Tooltip("time:Q", format=".4~g", title=f"time ({unit})"),
            ],
        )
    )
    caption = "Time in one run by the operator that ONNX Runtime runs, all of a kind together."
    return figure(name, chart, caption, 60 + 26 * len(shown))


#: What accuracy may be drawn by, the best known first: field, title, and what to multiply it by.
_ACCURACY = (
    ("score", "own measure", 1.0),
    ("sqnr_db", "signal to noise of the worst output (dB)", 1.0),
    ("agreement", "equal decisions (%)", 100.0),
)
#: Where a candidate without noise is drawn; one without a signal is at 0.
_NO_NOISE_DB = 140.0


def tradeoff_chart(name: str, tried: Sequence[_Facts]) -> Figure | None:
    """Speed against accuracy of everything that a search tried; None when too little is known."""
    timed = [(index, each) for index, each in enumerate(tried) if each.get("speed") is not None]
    known = [
        (sum(field in each for _, each in timed), field, title, factor)
        for field, title, factor in _ACCURACY
    ]
    count, field, title, factor = max(known, key=lambda each: each[0])
    if not count:
        return None
    rows = []
    for index, each in timed:
        if field not in each:
            continue
        value = _NO_NOISE_DB if each[field] is None else each[field] * factor
        if value <= NO_SIGNAL:
            value = 0.0
        rows.append(
            {
                "index": index,
                "label": each["label"],
                "speed": each["speed"],
                "low": each.get("speed_low", each["speed"]),
                "high": each.get("speed_high", each["speed"]),
                "accuracy": value,
                "state": _state(each),
                "how": "timed" if each.get("measured", True) else "expected",
                "reason": each.get("reason", ""),
            }
        )
    states = {
        "chosen": ("var(--good)", "diamond"),
        "within the budget": ("var(--after)", "circle"),
        "over the budget": ("var(--bad)", "cross"),
        "tried": ("var(--before)", "circle"),
    }
    present = [state for state in states if any(row["state"] == state for row in rows)]
    base = alt.Chart(alt.InlineData(values=rows))
    colour = alt.Color(
        "state:N",
        title=None,
        scale=alt.Scale(domain=present, range=[states[each][0] for each in present]),
    )
    x = alt.X(
        "speed:Q", title="speed (times the original's)", scale=alt.Scale(zero=False, nice=True)
    )
    y = alt.Y("accuracy:Q", title=title, scale=alt.Scale(zero=False, nice=True))
    spread = base.mark_rule(opacity=0.5).encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=colour)
    points = base.mark_point(filled=True, size=110, opacity=0.95, cursor="pointer").encode(
        x=x,
        y=y,
        color=colour,
        shape=alt.Shape(
            "state:N",
            title=None,
            scale=alt.Scale(domain=present, range=[states[each][1] for each in present]),
        ),
        tooltip=[
            alt.Tooltip("label:N", title="tried"),
            alt.Tooltip("speed:Q", format=".3~f"),
            alt.Tooltip("how:N", title="speed is"),
            alt.Tooltip("accuracy:Q", format=".4~g", title=title),
            alt.Tooltip("state:N"),
            alt.Tooltip("reason:N"),
        ],
    )
    caption = (
        "Every model that was tried: further right is faster, further up is truer to the "
        "original. Click a point, or a row of the table, to see what it is made of."
    )
    return figure(name, spread + points, caption, 340)


def _state(each: _Facts) -> str:
    if each.get("chosen"):
        return "chosen"
    within = each.get("within_budget")
    if within is None:
        return "tried"
    return "within the budget" if within else "over the budget"


def trail_chart(name: str, passes: Sequence[_Facts], undone: Sequence[_Facts]) -> Figure:
    """When each pass ran, how long, and what came of it."""
    left_out = {each["name"] for each in undone}
    spent, rows = 0.0, []
    total = sum(each.get("seconds", 0.0) for each in passes)
    factor, unit = unit_of_time(total)
    for each in passes:
        seconds = each.get("seconds", 0.0)
        rewrites = sum(each.get("rewritten", {}).values())
        rows.append(
            {
                "pass": each["name"],
                "start": spent * factor,
                "end": (spent + seconds) * factor,
                "time": seconds * factor,
                "round": each["round"] + 1,
                "rewrites": rewrites,
                "came": "changed" if each["modified"] else "nothing to do",
            }
        )
        spent += seconds
    order = list(dict.fromkeys(row["pass"] for row in rows))
    order += [each for each in left_out if each not in order]
    rows += [
        {
            "pass": each["name"],
            "start": 0.0,
            "end": spent * factor,
            "time": None,
            "round": None,
            "rewrites": None,
            "came": "undone",
        }
        for each in undone
    ]
    colours = {
        "changed": "var(--after)",
        "nothing to do": "var(--before)",
        "undone": "var(--bad)",
    }
    present = [came for came in colours if any(row["came"] == came for row in rows)]
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_bar(minBandSize=4, height={"band": 0.7})
        .encode(
            x=alt.X("start:Q", title=f"time in passes ({unit})"),
            x2="end:Q",
            y=alt.Y("pass:N", sort=order, title=None, axis=_ALL_LABELS),
            color=alt.Color(
                "came:N",
                title=None,
                scale=alt.Scale(domain=present, range=[colours[each] for each in present]),
            ),
            opacity=alt.condition(alt.datum.came == "undone", alt.value(0.35), alt.value(1.0)),
            tooltip=[
                alt.Tooltip("pass:N"),
                alt.Tooltip("came:N", title="what came of it"),
                alt.Tooltip("time:Q", format=".3~g", title=f"time ({unit})"),
                alt.Tooltip("round:Q"),
                alt.Tooltip("rewrites:Q"),
            ],
        )
    )
    caption = "The pipeline as it ran; a pass runs again when another has made work for it."
    return figure(name, chart, caption, 60 + 19 * len(order))


def stage_chart(name: str, stages: Sequence[_Facts]) -> Figure | None:
    """Size after each stage; None when it is not known of two."""
    known = [each for each in stages if each.get("bytes") is not None]
    if len(known) < 2:
        return None
    size, unit = unit_of_bytes(max(each["bytes"] for each in known))
    rows = [
        {
            "stage": each["name"],
            "size": each["bytes"] / size,
            "kept": "kept" if each.get("kept", True) else "undone",
        }
        for each in known
    ]
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("size:Q", title=f"size of the model ({unit})"),
            y=alt.Y("stage:N", sort=None, title=None, axis=_ALL_LABELS),
            color=alt.Color(
                "kept:N",
                title=None,
                scale=alt.Scale(domain=["kept", "undone"], range=["var(--after)", "var(--bad)"]),
            ),
            tooltip=["stage:N", alt.Tooltip("size:Q", format=".4~g"), "kept:N"],
        )
    )
    return figure(name, chart, "Size of the model after each stage.", 60 + 28 * len(rows))


def curve_charts(prefix: str, curves: Sequence[_Facts]) -> list[Figure]:
    """One chart for the curves of each plot and unit."""
    groups: dict[tuple[str, str, str], list[_Facts]] = {}
    for curve in curves:
        key = curve.get("plot", ""), curve.get("unit", ""), curve.get("x_label", "step")
        groups.setdefault(key, []).append(curve)
    found = []
    for index, ((plot, unit, x_label), members) in enumerate(groups.items()):
        rows = [
            {"x": x, "y": y, "curve": curve["name"]}
            for curve in members
            for x, y in zip(curve["x"], curve["y"], strict=True)
            if y is not None
        ]
        names = [curve["name"] for curve in members]
        y_title = f"{', '.join(names)} ({unit})" if unit else ", ".join(names)
        chart = (
            alt.Chart(alt.InlineData(values=rows))
            .mark_line(point=len(rows) <= 60 * len(members))
            .encode(
                x=alt.X("x:Q", title=x_label),
                y=alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=False)),
                color=alt.Color(
                    "curve:N",
                    title=None,
                    scale=alt.Scale(
                        range=["var(--after)", "var(--warm)", "var(--good)", "var(--before)"]
                    ),
                ),
                strokeDash=alt.StrokeDash("curve:N", title=None),
                tooltip=[
                    "curve:N",
                    alt.Tooltip("x:Q", title=x_label),
                    alt.Tooltip("y:Q", format=".4~g"),
                ],
            )
        )
        found.append(figure(f"{prefix}-curve-{index}", chart, f"{plot}."))
    return found
