"""The section on layers, of whatever made a model out of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxopt.report.page import layer_charts
from onnxopt.report.page.layer_table import layer_table
from onnxopt.report.page.report_view import ReportView

__all__ = ["add_layers"]

_Facts = Mapping[str, Any]


def add_layers(page: ReportView, layers: Sequence[_Facts], room: int) -> None:
    """Add the section, where there are layers to tell of."""
    if not layers:
        return
    prefix, data = page.prefix, f"{page.prefix}-all-layers"
    rows, unit = layer_charts.layer_rows(layers)
    page.data[data] = rows
    charts = [
        chart
        for chart in (
            layer_charts.slowest_chart(f"{prefix}-slowest", layers),
            layer_charts.noise_chart(f"{prefix}-noise", data, rows),
            layer_charts.bytes_chart(f"{prefix}-bytes", data, rows, unit),
            layer_charts.zeros_chart(f"{prefix}-zeros", data, rows),
        )
        if chart is not None
    ]
    table = layer_table(f"{prefix}-layers", layers, room)
    page.add("layers", "Layers", charts=charts, table=table)
