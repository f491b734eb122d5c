"""``onnxopt compress``."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxopt.cli.arguments import (
    Evaluate,
    Json,
    MaxDrop,
    MinAgreement,
    MinCosine,
    MinSqnr,
    Model,
    Quiet,
    Seconds,
    Threads,
)
from onnxopt.cli.failures import reports_failures
from onnxopt.cli.progress import progress
from onnxopt.cli.reports import Report, check_reports, report_document, write_reports

if TYPE_CHECKING:
    from onnxopt.compress import CompressSettings

__all__ = ["compress"]

#: Ended by Ctrl-C, as a shell counts it: 128 + SIGINT.
_INTERRUPTED = 130
_TARGET = "What is to be reached, as a share of the original"


@reports_failures()
def compress(
    model: Model,
    output: Annotated[
        pathlib.Path, typer.Argument(help="Where to write the result.", show_default=False)
    ],
    data: Annotated[
        pathlib.Path,
        typer.Option(
            help="Samples to learn from: a folder of .npz files, one feed each, or one .npz of "
            "stacked samples. One in ten is held out to judge with.",
            show_default=False,
        ),
    ],
    target_latency: Annotated[
        float | None,
        typer.Option(help="Time of one run.", show_default="0.5", rich_help_panel=_TARGET),
    ] = None,
    target_size: Annotated[
        float | None,
        typer.Option(help="Bytes of the file.", show_default=False, rich_help_panel=_TARGET),
    ] = None,
    target_macs: Annotated[
        float | None,
        typer.Option(
            help="Multiply-accumulates of one run.", show_default=False, rich_help_panel=_TARGET
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Array of labels in the data, if there are some.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        pathlib.Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Read settings from a file; options given here go before it.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="How often to train on all samples, at most.", show_default="10"),
    ] = None,
    min_sqnr: MinSqnr = None,
    min_agreement: MinAgreement = None,
    min_cosine: MinCosine = None,
    evaluate: Evaluate = None,
    max_drop: MaxDrop = None,
    threads: Threads = None,
    seconds: Seconds = None,
    report: Report = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prune, distill, quantize and distill again, until the target is met within the budget.

    Each stage is measured against the original; the result is the best that stays within the
    accuracy budget, and the original itself if nothing does. Needs the extra "train".
    """
    from onnxopt.report.compression import compression_lines
    from onnxopt.report.json_file import json_text
    from onnxopt.report.layout import console

    check_reports(report, model, output)
    from onnxopt.compress import compress as run
    from onnxopt.training.distiller import InterruptedTrainingError

    shares = {"latency": target_latency, "size": target_size, "macs": target_macs}
    targets = {of: share for of, share in shares.items() if share is not None}
    if len(targets) > 1:
        raise typer.BadParameter("aim at one of latency, size and multiply-accumulates")
    budget = {
        "min_sqnr": min_sqnr,
        "min_agreement": min_agreement,
        "min_cosine": min_cosine,
        "evaluate": evaluate,
        "max_drop": max_drop,
    }
    given = {"threads": threads, "seconds": seconds}
    settings = _settings(recipe, targets, given, budget, labels, epochs)
    try:
        with progress(quiet or as_json) as on_step:
            result = run(model, output, data, settings, on_step=on_step)
    except InterruptedTrainingError:
        print("onnxopt: error: interrupted; nothing was written", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED) from None
    document = report_document("compress", result.to_dict())
    write_reports(report, document)
    if as_json:
        print(json_text(document))
    elif not quiet:
        out = console()
        for line in compression_lines(result):
            out.print(line)


def _settings(
    recipe: pathlib.Path | None,
    targets: dict[str, float],
    given: dict[str, Any],
    budget: dict[str, Any],
    labels: str | None,
    epochs: float | None,
) -> CompressSettings:
    """The recipe's settings, and over them what the command line gives."""
    from onnxopt.compress import CompressSettings, Target
    from onnxopt.compress_recipe import CompressRecipe, read_compress_recipe
    from onnxopt.recipe import budget_from

    base = (
        CompressRecipe(CompressSettings(), {}) if recipe is None else read_compress_recipe(recipe)
    )
    chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    for of, share in targets.items():
        chosen["target"] = Target(of, share)  # type: ignore[arg-type]  # one of three literals
    limits = {key: value for key, value in budget.items() if value is not None}
    chosen["budget"] = budget_from({**base.budget, **limits})
    distill = base.settings.distill
    if labels is not None:
        distill = dataclasses.replace(distill, labels=labels)
    if epochs is not None:
        training = dataclasses.replace(distill.training, epochs=epochs, steps=None)
        distill = dataclasses.replace(distill, training=training)
    return dataclasses.replace(base.settings, distill=distill, **chosen)
