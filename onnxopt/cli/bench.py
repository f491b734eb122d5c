"""``onnxopt bench``."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from onnxopt.cli.failures import reports_failures
from onnxopt.cli.option_groups import takes_option_groups
from onnxopt.cli.options import FeedOptions, Seconds, Threads
from onnxopt.cli.progress import progress
from onnxopt.cli.reports import ReportOptions

__all__ = ["bench"]


@reports_failures()
@takes_option_groups
def bench(
    models: Annotated[
        list[pathlib.Path],
        typer.Argument(help="Models; speeds are relative to the first.", show_default=False),
    ],
    *,
    feeds: FeedOptions,
    threads: Threads = None,
    seconds: Seconds = None,
    reports: ReportOptions,
) -> None:
    """Measure models against each other: load time, peak memory, and latency with its spread.

    Models run in turn, so that a drift of the machine's speed falls on all alike. A difference that
    may be chance is called noise.
    """
    request = feeds.request(models[0])
    from onnxopt.bench import bench as run
    from onnxopt.report.comparisons import bench_lines

    reports.check(*models)
    with progress(reports.is_silent) as on_step:
        result = run(
            models,
            data=feeds.data,
            request=request,
            threads=threads or 1,
            seconds=1.0 if seconds is None else seconds,
            on_step=on_step,
        )
        document = reports.write("bench", result.to_dict())
    reports.show(document, bench_lines(result))
