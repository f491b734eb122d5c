"""``onnxopt bench``."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from onnxopt.cli.arguments import (
    Data,
    InputValues,
    Json,
    Seconds,
    Shapes,
    Threads,
    feed_request,
)
from onnxopt.cli.failures import reports_failures
from onnxopt.cli.progress import progress
from onnxopt.cli.reports import Report, check_reports, report_document, write_reports

__all__ = ["bench"]


@reports_failures()
def bench(
    models: Annotated[
        list[pathlib.Path],
        typer.Argument(help="Models; speeds are relative to the first.", show_default=False),
    ],
    data: Data = None,
    input_values: InputValues = None,
    shapes: Shapes = None,
    threads: Threads = None,
    seconds: Seconds = None,
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Measure models against each other: load time, peak memory, and latency with its spread.

    Models run in turn, so that a drift of the machine's speed falls on all alike. A difference that
    may be chance is called noise.
    """
    request = feed_request(models[0], input_values, shapes)
    from onnxopt.bench import bench as run
    from onnxopt.report.comparisons import bench_lines
    from onnxopt.report.json_file import json_text
    from onnxopt.report.layout import console

    check_reports(report, *models)
    with progress(as_json) as on_step:
        result = run(
            models,
            data=data,
            request=request,
            threads=threads or 1,
            seconds=1.0 if seconds is None else seconds,
            on_step=on_step,
        )
        document = report_document("bench", result.to_dict())
        write_reports(report, document)
    if as_json:
        print(json_text(document))
        return
    out = console()
    for line in bench_lines(result):
        out.print(line)
