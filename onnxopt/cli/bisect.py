"""``onnxopt bisect``."""

from __future__ import annotations

import typer

from onnxopt.cli.failures import reports_failures
from onnxopt.cli.option_groups import takes_option_groups
from onnxopt.cli.option_text import tolerance_from_text
from onnxopt.cli.options import FeedOptions, Json, Model, Passes, Reproducer, Threads, Tolerances
from onnxopt.cli.progress import progress

__all__ = ["bisect"]

#: As of diff: nothing found, something found, trouble.
_FOUND, _TROUBLE = 1, 2


@reports_failures(_TROUBLE)
@takes_option_groups
def bisect(
    model: Model,
    *,
    passes: Passes = None,
    feeds: FeedOptions,
    tolerance: Tolerances = None,
    threads: Threads = None,
    reproducer: Reproducer = None,
    as_json: Json = False,
) -> None:
    """Find the pass, and the single rewrite in it, that first breaks a model.

    Broken is a model that ONNX Runtime refuses, that crashes it, or whose outputs differ. The exit
    code is 0 when nothing breaks the model, 1 when something does, 2 when it cannot be searched.
    """
    tolerances = () if tolerance is None else tolerance_from_text(tolerance)
    request = feeds.request(model)
    from onnxopt.bisect import bisect as run
    from onnxopt.report.comparisons import bisect_lines
    from onnxopt.report.json_file import json_text
    from onnxopt.report.layout import console
    from onnxopt.runtime.compare import Tolerance

    with progress(as_json) as on_step:
        report = run(
            model,
            passes or "exact",
            data=feeds.data,
            request=request,
            tolerance=Tolerance(*tolerances),
            threads=threads or 1,
            reproducer=reproducer,
            on_step=on_step,
        )
    if as_json:
        print(json_text(report.to_dict()))
    else:
        out = console()
        for line in bisect_lines(report):
            out.print(line)
    if report.culprit is not None:
        raise typer.Exit(_FOUND)
