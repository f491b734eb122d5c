"""What the page shows of a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxopt.report.formats import bytes_text, latency_text, ratio_text, seconds_text
from onnxopt.report.page.circumstances import circumstances
from onnxopt.report.page.report_view import ReportView, short_name
from onnxopt.report.page.run_charts import latency_chart
from onnxopt.report.page.tables import Cell, Column, Table, cell
from onnxopt.runtime.statistics import Latency, Ratio

__all__ = ["bench_view"]

_Facts = Mapping[str, Any]


def bench_view(document: _Facts, prefix: str, room: int) -> ReportView:
    """Look at the report of `bench`."""
    rows = document["rows"]
    names = [short_name(row["model"]) for row in rows]
    if len(set(names)) < len(names):
        names = [row["model"] for row in rows]
    page = ReportView(prefix, "bench", f"Measured: {', '.join(dict.fromkeys(names))}", document)
    first = names[0]
    for name, row in zip(names[1:], rows[1:], strict=True):
        speed = _ratio(row)
        if speed is None or speed.is_noise:
            page.lead.append(f"{name} is as fast as {first}, as far as can be told from noise.")
        else:
            page.lead.append(f"{name} runs at {speed.median:.2f} times the speed of {first}.")
    for name, row in zip(names, rows, strict=True):
        speed = _ratio(row)
        state = "" if speed is None or speed.is_noise else "good" if speed.median > 1 else "bad"
        remark = "the reference" if speed is None else ratio_text(speed)
        page.cards.append((name, seconds_text(row["latency"]["median"]), remark, state))
    table = Table.of_records(
        f"{prefix}-models",
        "Memory is the peak of a process of its own that loads the model once and runs it once.",
        [{**row, "name": name} for name, row in zip(names, rows, strict=True)],
        [
            (Column("model", breaks=True), lambda row: Cell(row["name"], title=row["model"])),
            (
                Column("latency", True),
                lambda row: Cell(latency_text(Latency(**row["latency"])), row["latency"]["median"]),
            ),
            (Column("speed", True), _speed_cell),
            (Column("size", True), lambda row: cell(row["bytes"], _bytes)),
            (Column("load time", True), lambda row: cell(row["load_seconds"], seconds_text)),
            (Column("peak memory", True), lambda row: cell(row["peak_memory_bytes"], _bytes)),
        ],
    )
    times = {name: row["latency"] for name, row in zip(names, rows, strict=True)}
    if len(times) < len(rows):  # the same model twice
        times = {
            f"{index + 1}: {name}": row["latency"]
            for index, (name, row) in enumerate(zip(names, rows, strict=True))
        }
    page.add(
        "bench",
        "What was measured",
        table=table,
        chart=latency_chart(f"{prefix}-latency", times),
        paired=document["paired"],
        rounds=rows[0]["latency"]["rounds"],
        idle=bytes_text(document["idle_memory_bytes"]),
        inputs=document["inputs"],
    )
    page.add("again", "How to see this again", facts=list(circumstances(document)))
    return page


def _ratio(row: _Facts) -> Ratio | None:
    facts = row["ratio"]
    return None if facts is None else Ratio(facts["median"], facts["low"], facts["high"])


def _speed_cell(row: _Facts) -> Cell:
    speed = _ratio(row)
    return Cell("1 (reference)", 1.0) if speed is None else Cell(ratio_text(speed), speed.median)


def _bytes(value: float) -> str:
    return bytes_text(int(value))
