"""What the page shows of an optimization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onnxopt.report.formats import bytes_text, seconds_text
from onnxopt.report.page import layer_charts, run_charts, run_tables
from onnxopt.report.page.circumstances import circumstances
from onnxopt.report.page.layer_section import add_layers
from onnxopt.report.page.report_view import ReportView, short_name
from onnxopt.report.page.run_headline import before_and_after, cards, lead

__all__ = ["run_view"]

_Facts = Mapping[str, Any]


def run_view(document: _Facts, prefix: str, room: int) -> ReportView:
    """Look at the report of a run that made a model out of another."""
    page = ReportView(
        prefix,
        document["kind"],
        f"{short_name(document['source'])} → "
        + (short_name(document["target"]) if document["target"] else "not written"),
        document,
    )
    layers = document.get("layers", [])
    page.lead = list(lead(document, layers))
    page.cards = list(cards(document))
    _add_results(page)
    _add_search(page)
    _add_stages(page)
    add_layers(page, layers, room)
    _add_histograms(page)
    _add_treatments(page)
    _add_pipeline(page)
    curves = run_charts.curve_charts(prefix, document.get("curves", []))
    if curves:
        page.add("training", "Training", charts=curves)
    page.add("again", "How to see this again", facts=list(_circumstances(document)))
    return page


def _add_results(page: ReportView) -> None:
    document = page.document
    before, after = document["before"], document["after"]
    charts = []
    if before.get("latency") and after.get("latency") and document["changed"]:
        charts.append(
            run_charts.latency_chart(
                f"{page.prefix}-latency",
                {"original": before["latency"], "result": after["latency"]},
            )
        )
    if before.get("kernel_seconds") and after.get("kernel_seconds"):
        charts.append(
            run_charts.kernel_chart(
                f"{page.prefix}-kernels", before["kernel_seconds"], after["kernel_seconds"]
            )
        )
    page.add(
        "results",
        "What came out",
        rows=before_and_after(document),
        charts=charts,
        outputs=run_tables.output_table(f"{page.prefix}-outputs", document),
        idle=None
        if document.get("idle_memory_bytes") is None
        else bytes_text(document["idle_memory_bytes"]),
        inputs=document.get("inputs") or {},
        undone=document["undone"],
        notes=document["notes"],
    )


def _add_search(page: ReportView) -> None:
    search = page.document.get("search")
    if not search:
        return
    tried = search["tried"]
    page.tried = [
        {
            "label": each["label"],
            "reason": each.get("reason", ""),
            "treatments": each.get("treatments", {}),
        }
        for each in tried
    ]
    regions = search["regions"]
    page.add(
        "search",
        "What was tried",
        goal=search.get("goal", ""),
        budget=search.get("budget", ""),
        chart=run_charts.tradeoff_chart(f"{page.prefix}-tradeoff", tried),
        tried=run_tables.tried_table(f"{page.prefix}-tried", tried) if tried else None,
        regions=run_tables.region_table(f"{page.prefix}-regions", regions) if regions else None,
    )


def _add_stages(page: ReportView) -> None:
    stages = page.document.get("stages", [])
    if stages:
        page.add(
            "stages",
            "Stages",
            table=run_tables.stage_table(f"{page.prefix}-stages", stages),
            chart=run_charts.stage_chart(f"{page.prefix}-stages-chart", stages),
        )


def _add_histograms(page: ReportView) -> None:
    histograms = page.document.get("histograms", [])
    if not histograms:
        return
    for each in histograms:
        counts, edges = layer_charts.fewer_bins(each["counts"], each["edges"])
        page.histograms[each["tensor"]] = {
            "counts": counts,
            "edges": [float(f"{edge:.6g}") for edge in edges],
            "ends": [each[end] for end in ("low", "high") if each.get(end) is not None],
            "about": f"{each.get('kind', 'activation')}, {sum(counts):,} values"
            + (f", range by {each['method']}" if each.get("method") else ""),
        }
    page.add(
        "histograms",
        "Ranges of tensors",
        chart=layer_charts.histogram_chart(f"{page.prefix}-histogram"),
        tensors=list(page.histograms),
    )


def _add_treatments(page: ReportView) -> None:
    nodes = page.document.get("treatments", [])
    if nodes:
        table = run_tables.treatment_table(f"{page.prefix}-treatments", nodes)
        page.add("treatments", "Node by node", table=table)


def _add_pipeline(page: ReportView) -> None:
    passes, undone = page.document["passes"], page.document["undone"]
    if not passes and not undone:
        return
    page.add(
        "pipeline",
        "The pipeline",
        chart=run_charts.trail_chart(f"{page.prefix}-trail", passes, undone) if passes else None,
        table=run_tables.pass_table(f"{page.prefix}-passes", passes, undone),
        left=run_tables.refusal_table(f"{page.prefix}-left", passes),
    )


def _circumstances(document: _Facts) -> Iterator[tuple[str, str]]:
    """The command, the pipeline, the machine and the versions."""
    yield from circumstances(document)
    yield "pipeline", document["pipeline"].replace(",", ", ")
    yield "time of the whole run", seconds_text(document["seconds"])
