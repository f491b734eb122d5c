"""``onnxopt check``."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from onnxopt.cli.failures import reports_failures
from onnxopt.cli.option_groups import takes_option_groups
from onnxopt.cli.option_text import tolerance_from_text
from onnxopt.cli.options import FeedOptions, Threads, Tolerances
from onnxopt.cli.progress import progress
from onnxopt.cli.reports import ReportOptions

__all__ = ["check"]

#: As of diff: the same, different, trouble.
_DIFFERENT, _TROUBLE = 1, 2


@reports_failures(_TROUBLE)
@takes_option_groups
def check(
    first: Annotated[pathlib.Path, typer.Argument(help="The reference.", show_default=False)],
    second: Annotated[
        pathlib.Path, typer.Argument(help="The model held against it.", show_default=False)
    ],
    *,
    feeds: FeedOptions,
    tolerance: Tolerances = None,
    threads: Threads = None,
    attribution: Annotated[
        bool,
        typer.Option(
            "--attribution",
            help="Compare why the models answer as they do, too: which parts of the inputs matter.",
        ),
    ] = False,
    reports: ReportOptions,
) -> None:
    """Compare the outputs of two models; where they differ, find the first layer that does.

    The exit code is 0 when they agree, 1 when they differ, 2 when they cannot be compared.
    """
    tolerances = () if tolerance is None else tolerance_from_text(tolerance)
    request = feeds.request(first)
    from onnxopt.check import check as run
    from onnxopt.report.comparisons import check_lines
    from onnxopt.runtime.compare import Tolerance

    reports.check(first, second)
    with progress(reports.is_silent) as on_step:
        result = run(
            first,
            second,
            data=feeds.data,
            request=request,
            tolerance=Tolerance(*tolerances),
            threads=threads or 1,
            attribution=attribution,
            on_step=on_step,
        )
        document = reports.write("check", result.to_dict())
    reports.show(document, check_lines(result))
    if not result.agree:
        raise typer.Exit(_DIFFERENT)
