"""``onnxopt check``."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from onnxopt.cli.arguments import (
    Data,
    InputValues,
    Json,
    Quiet,
    Shapes,
    Threads,
    Tolerances,
    feed_request,
    tolerance_from_text,
)
from onnxopt.cli.failures import reports_failures
from onnxopt.cli.progress import progress
from onnxopt.cli.reports import Report, check_reports, report_document, write_reports

__all__ = ["check"]

#: As of diff: the same, different, trouble.
_DIFFERENT, _TROUBLE = 1, 2


@reports_failures(_TROUBLE)
def check(
    first: Annotated[pathlib.Path, typer.Argument(help="The reference.", show_default=False)],
    second: Annotated[
        pathlib.Path, typer.Argument(help="The model held against it.", show_default=False)
    ],
    data: Data = None,
    input_values: InputValues = None,
    shapes: Shapes = None,
    tolerance: Tolerances = None,
    threads: Threads = None,
    attribution: Annotated[
        bool,
        typer.Option(
            "--attribution",
            help="Compare why the models answer as they do, too: which parts of the inputs matter.",
        ),
    ] = False,
    report: Report = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare the outputs of two models; where they differ, find the first layer that does.

    The exit code is 0 when they agree, 1 when they differ, 2 when they cannot be compared.
    """
    tolerances = () if tolerance is None else tolerance_from_text(tolerance)
    request = feed_request(first, input_values, shapes)
    from onnxopt.check import check as run
    from onnxopt.report.comparisons import check_lines
    from onnxopt.report.json_file import json_text
    from onnxopt.report.layout import console
    from onnxopt.runtime.compare import Tolerance

    check_reports(report, first, second)
    with progress(quiet or as_json) as on_step:
        result = run(
            first,
            second,
            data=data,
            request=request,
            tolerance=Tolerance(*tolerances),
            threads=threads or 1,
            attribution=attribution,
            on_step=on_step,
        )
        document = report_document("check", result.to_dict())
        write_reports(report, document)
    if as_json:
        print(json_text(document))
    elif not quiet:
        out = console()
        for line in check_lines(result):
            out.print(line)
    if not result.agree:
        raise typer.Exit(_DIFFERENT)
