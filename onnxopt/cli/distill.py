"""``onnxopt distill``."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxopt.cli.arguments import Json, Quiet, named_texts
from onnxopt.cli.failures import reports_failures
from onnxopt.cli.progress import progress
from onnxopt.cli.reports import Report, check_reports, report_document, write_reports

if TYPE_CHECKING:
    from onnxopt.training.distillation import DistillSettings

__all__ = ["distill"]

#: Ended by Ctrl-C, as a shell counts it: 128 + SIGINT.
_INTERRUPTED = 130
_LOSS = "What is learned"
_LOOP = "How"


@reports_failures()
def distill(
    output: Annotated[
        pathlib.Path, typer.Argument(help="Where to write the result.", show_default=False)
    ],
    teacher: Annotated[pathlib.Path, typer.Option(help="The original model.", show_default=False)],
    student: Annotated[
        pathlib.Path,
        typer.Option(
            help="What became of it by pruning or quantization; it is not changed.",
            show_default=False,
        ),
    ],
    data: Annotated[
        pathlib.Path,
        typer.Option(
            help="Samples to train on: a folder of .npz files, one feed each, or one .npz of "
            "stacked samples. One in ten is held out to judge with.",
            show_default=False,
        ),
    ],
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
        typer.Option(
            help="How often to go through the samples, at most.",
            show_default="10",
            rich_help_panel=_LOOP,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps, in place of epochs.", show_default=False, rich_help_panel=_LOOP
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Samples for one step.", show_default="64", rich_help_panel=_LOOP),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Length of a step, relative to the size of a weight.",
            show_default="0.01",
            rich_help_panel=_LOOP,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Stop after so many evaluations, of 20, that are no better; 0 for never.",
            show_default="8",
            rich_help_panel=_LOOP,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Fixes all that is random.", show_default="0", rich_help_panel=_LOOP),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads to train with.", show_default="1", rich_help_panel=_LOOP),
    ] = None,
    checkpoint: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="File for the state of the training; the same command goes on from there.",
            show_default="OUTPUT.checkpoint",
            rich_help_panel=_LOOP,
        ),
    ] = None,
    label_weight: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the labels in the loss; the rest is the teacher's.",
            show_default="0.5",
            rich_help_panel=_LOSS,
        ),
    ] = None,
    label_output: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Output that the labels belong to.",
            show_default="auto",
            rich_help_panel=_LOSS,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Softens logits.", show_default="2", rich_help_panel=_LOSS),
    ] = None,
    losses: Annotated[
        list[str] | None,
        typer.Option(
            "--loss",
            metavar="OUTPUT=LOSS",
            help="kl, dkd, dist, chances, cosine, mse or none.",
            show_default="by kind",
            rich_help_panel=_LOSS,
        ),
    ] = None,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            metavar="OUTPUT=KIND",
            help="logits, probabilities, log-probabilities, chances, embedding or numbers; with "
            "the axis of classes where need be, such as logits@1.",
            show_default="auto",
            rich_help_panel=_LOSS,
        ),
    ] = None,
    hints: Annotated[
        list[str] | None,
        typer.Option(
            "--hint",
            metavar="TENSOR[=TENSOR]",
            help="Inner tensor of the teacher to follow, and its name in the student if that is "
            "another.",
            show_default=False,
            rich_help_panel=_LOSS,
        ),
    ] = None,
    standardize: Annotated[
        bool,
        typer.Option(
            "--standardize",
            help="Standardize logits before comparing them.",
            rich_help_panel=_LOSS,
        ),
    ] = False,
    report: Report = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a compressed model on what the original answers, and write it.

    No labels are needed, and no code: what pruning and quantization cost, learning from the
    original gives back. Weights that are zero stay zero, quantized ones stay on their grid. Needs
    the extra "train".
    """
    from onnxopt.report.distillation import distillation_lines
    from onnxopt.report.json_file import json_text
    from onnxopt.report.layout import console

    check_reports(report, teacher, student, output)
    from onnxopt.training.distillation import DistillSettings
    from onnxopt.training.distillation import distill as run
    from onnxopt.training.distiller import InterruptedTrainingError
    from onnxopt.training.parallel import joined_processes
    from onnxopt.training.recipe import read_distill_recipe

    base = DistillSettings() if recipe is None else read_distill_recipe(recipe)
    training = {
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "patience": patience,
        "seed": seed,
        "threads": threads,
    }
    given: dict[str, Any] = {
        "labels": labels,
        "label_weight": label_weight,
        "label_output": label_output,
        "temperature": temperature,
        "losses": named_texts(losses, "=", "--loss") or None,
        "kinds": named_texts(kinds, "=", "--kind") or None,
        "hints": _hints(hints),
        "standardize": standardize or None,
        "threads": threads,
    }
    settings = _over(base, training, given)
    try:
        with joined_processes() as processes:
            silent = quiet or as_json or not processes.is_first
            with progress(silent) as on_step:
                result = run(
                    teacher,
                    student,
                    output,
                    data,
                    settings,
                    checkpoint=checkpoint or output.with_name(output.name + ".checkpoint"),
                    on_step=on_step,
                    processes=processes,
                )
            if not processes.is_first:
                return
    except InterruptedTrainingError as interruption:
        print(f"onnxopt: {interruption}", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED) from None
    document = report_document("distill", result.to_dict())
    write_reports(report, document)
    if as_json:
        print(json_text(document))
    elif not quiet:
        out = console()
        for line in distillation_lines(result):
            out.print(line)


def _hints(items: list[str] | None) -> dict[str, str] | None:
    """The teacher's tensors and the student's."""
    if items is None:
        return None
    return {name: inner or name for name, _, inner in (each.partition("=") for each in items)}


def _over(
    base: DistillSettings, training: dict[str, Any], given: dict[str, Any]
) -> DistillSettings:
    """The recipe's settings, and over them what the command line gives."""
    loop = dataclasses.replace(
        base.training, **{key: value for key, value in training.items() if value is not None}
    )
    chosen = {key: value for key, value in given.items() if value is not None}
    return dataclasses.replace(base, training=loop, **chosen)
