"""Why two models answer as they do, on the page: rank correlations, and the worst in pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from onnxopt.report.page.figures import Figure, figure
from onnxopt.report.page.report_view import ReportView
from onnxopt.report.page.tables import Cell, Column, Table, cell

__all__ = ["add_reasons"]

_Facts = Mapping[str, Any]
_METHODS = {"occlusion": "occlusion", "shapley": "Shapley value"}
_MODELS = ("first", "second")


@dataclasses.dataclass(frozen=True)
class _Worst:
    """One of the samples that are explained least alike.

    Attributes:
        heading: Which one, and how alike.
        picture: The sample as a data URI, or empty.
        charts: What matters in it.
    """

    heading: str
    picture: str
    charts: list[Figure]


def add_reasons(page: ReportView, report: _Facts) -> None:
    """Add the section on attributions."""
    page.lead.append(report["verdict"])
    samples = report["samples"]
    low = min(report["occlusion"], report["shapley"])
    state = "bad" if any(each["other_reasons"] for each in samples) else "good"
    page.cards.append(
        ("reasons", f"{low:.3f}", "median rank correlation of what matters in the inputs", state)
    )
    worst = [
        _worst(f"{page.prefix}-reason-{index}", each)
        for index, each in enumerate(samples)
        if each["attributions"]
    ]
    page.add(
        "reasons",
        "Reasons",
        verdict=report["verdict"],
        input=report["input"],
        output=report["output"],
        threshold=report["threshold"],
        notes=report["notes"],
        chart=_correlations(f"{page.prefix}-correlations", samples, report["threshold"]),
        table=_table(f"{page.prefix}-explained", samples),
        worst=worst,
        charts=[chart for each in worst for chart in each.charts],
    )


def _correlations(name: str, samples: Sequence[_Facts], threshold: float) -> Figure:
    """Rank correlation of each sample, by both methods."""
    rows = [
        {"sample": each["sample"], "method": label, "correlation": each[method]}
        for each in samples
        for method, label in _METHODS.items()
    ]
    points = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_point(filled=True, size=60)
        .encode(
            x=alt.X("sample:O", title="sample"),
            y=alt.Y("correlation:Q", title="rank correlation (Spearman)").scale(zero=False),
            color=alt.Color(
                "method:N",
                title=None,
                scale=alt.Scale(
                    domain=list(_METHODS.values()), range=["var(--after)", "var(--warm)"]
                ),
            ),
            shape=alt.Shape(
                "method:N", title=None, scale=alt.Scale(domain=list(_METHODS.values()))
            ),
            tooltip=["sample:O", "method:N", alt.Tooltip("correlation:Q", format=".3f")],
        )
    )
    limit = (
        alt.Chart(alt.InlineData(values=[{"limit": threshold}]))
        .mark_rule(color="var(--bad)", strokeDash=[6, 3])
        .encode(y="limit:Q")
    )
    caption = (
        "How alike both models order the parts of each sample; below the line, for other reasons."
    )
    return figure(name, points + limit, caption, 240)


def _worst(name: str, each: _Facts) -> _Worst:
    decision = {None: "", True: ", same decision", False: ", another decision"}
    heading = (
        f"Sample {each['sample']}: rank correlation {each['occlusion']:.3f} by occlusion, "
        f"{each['shapley']:.3f} by Shapley values{decision[each['same_decision']]}"
    )
    charts = []
    for method, label in _METHODS.items():
        values = each["attributions"][method]
        if each["grid"][0] > 1:
            charts += [
                _heat(f"{name}-{method}-{model}", label, model, values, index, each["grid"])
                for index, model in enumerate(_MODELS)
            ]
        else:
            charts.append(_bars(f"{name}-{method}", label, values))
    return _Worst(heading, each["picture"], charts)


def _heat(
    name: str,
    label: str,
    model: str,
    values: Sequence[Sequence[float]],
    index: int,
    grid: Sequence[int],
) -> Figure:
    """What each patch does to the answer of one model; both models share the colours."""
    rows, columns = grid
    largest = max(abs(value) for each in values for value in each) or 1.0
    cells = [
        {"row": place // columns + 1, "column": place % columns + 1, "effect": value}
        for place, value in enumerate(values[index])
    ]
    chart = (
        alt.Chart(alt.InlineData(values=cells))
        .mark_rect()
        .encode(
            x=alt.X("column:O", title="patch, from left", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("row:O", title="patch, from above"),
            color=alt.Color(
                "effect:Q",
                scale=alt.Scale(scheme="redblue", domain=[-largest, largest]),
                legend=None,
            ),
            tooltip=["column:O", "row:O", alt.Tooltip("effect:Q", format=".4~g")],
        )
    )
    caption = (
        f"{label[0].upper()}{label[1:]}, {model} model: blue speaks for the answer, red against."
    )
    return figure(name, chart, caption, max(110, min(220, 30 * rows + 40)))


def _bars(name: str, label: str, values: Sequence[Sequence[float]]) -> Figure:
    """What each part of a line does to the answers of both models."""
    rows = [
        {"part": place + 1, "model": model, "effect": value}
        for model, effects in zip(_MODELS, values, strict=True)
        for place, value in enumerate(effects)
    ]
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("part:O", title="part of the input", axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("model:N", sort=list(_MODELS)),
            y=alt.Y("effect:Q", title=f"effect on the answer ({label})"),
            color=alt.Color(
                "model:N",
                title=None,
                scale=alt.Scale(domain=list(_MODELS), range=["var(--before)", "var(--after)"]),
            ),
            tooltip=["part:O", "model:N", alt.Tooltip("effect:Q", format=".4~g")],
        )
    )
    return figure(name, chart, f"{label[0].upper()}{label[1:]} of each part, in both models.", 220)


def _table(name: str, samples: Sequence[_Facts]) -> Table:
    decision = {None: "", True: "the same", False: "another"}
    return Table.of_records(
        name,
        f"{len(samples):,} samples, those that are explained least alike first.",
        samples,
        [
            (Column("sample"), lambda each: Cell(str(each["sample"]))),
            (Column("occlusion", True), lambda each: cell(each["occlusion"], "{:.3f}".format)),
            (Column("Shapley", True), lambda each: cell(each["shapley"], "{:.3f}".format)),
            (Column("decision"), lambda each: Cell(decision[each["same_decision"]])),
            (
                Column("remark"),
                lambda each: Cell("for other reasons" if each["other_reasons"] else ""),
            ),
        ],
    )
