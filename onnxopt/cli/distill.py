"""``onnxopt distill``."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxopt.cli.failures import reports_failures
from onnxopt.cli.option_groups import OptionGroup, takes_option_groups
from onnxopt.cli.option_text import named_texts
from onnxopt.cli.options import Labels, Output, Recipe, TrainingSamples
from onnxopt.cli.progress import progress
from onnxopt.cli.reports import ReportOptions

if TYPE_CHECKING:
    from onnxopt.training.distillation import DistillSettings

__all__ = ["distill"]

_LOSS = "What is learned"
_LOOP = "How"


@dataclasses.dataclass(frozen=True)
class LoopOptions(OptionGroup):
    """Fields of `onnxopt.training.settings.TrainingSettings`."""

    epochs: Annotated[
        float | None,
        typer.Option(
            help="How often to go through the samples, at most.",
            show_default="10",
            rich_help_panel=_LOOP,
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps, in place of epochs.", show_default=False, rich_help_panel=_LOOP
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Samples for one step.", show_default="64", rich_help_panel=_LOOP),
    ] = None
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Length of a step, relative to the size of a weight.",
            show_default="by short trials",
            rich_help_panel=_LOOP,
        ),
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Stop after so many evaluations, of 20, that are no better; 0 for never.",
            show_default="8",
            rich_help_panel=_LOOP,
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(help="Fixes all that is random.", show_default="0", rich_help_panel=_LOOP),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads to train with.", show_default="1", rich_help_panel=_LOOP),
    ] = None


@dataclasses.dataclass(frozen=True)
class LossOptions(OptionGroup):
    """Fields of `onnxopt.training.distillation.DistillSettings`, some of them as text."""

    label_weight: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the labels in the loss; the rest is the teacher's.",
            show_default="0.5",
            rich_help_panel=_LOSS,
        ),
    ] = None
    label_output: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Output that the labels belong to.",
            show_default="auto",
            rich_help_panel=_LOSS,
        ),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(help="Softens logits.", show_default="2", rich_help_panel=_LOSS),
    ] = None
    losses: Annotated[
        list[str] | None,
        typer.Option(
            "--loss",
            metavar="OUTPUT=LOSS",
            help="kl, dkd, dist, chances, cosine, mse or none.",
            show_default="by kind",
            rich_help_panel=_LOSS,
        ),
    ] = None
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
    ] = None
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
    ] = None
    standardize: Annotated[
        bool,
        typer.Option(
            "--standardize",
            help="Standardize logits before comparing them.",
            rich_help_panel=_LOSS,
        ),
    ] = False

    renormalize: Annotated[
        bool,
        typer.Option(
            "--renormalize",
            help="Put BatchNormalization after convolutions for the training, and fold it again.",
            rich_help_panel=_LOOP,
        ),
    ] = False

    def settings(self) -> dict[str, Any]:
        """The options that were given, as the settings have them."""
        read = {
            "losses": named_texts(self.losses, "=", "--loss") or None,
            "kinds": named_texts(self.kinds, "=", "--kind") or None,
            "hints": _hints(self.hints),
        }
        return self.given() | {name: value for name, value in read.items() if value}


@reports_failures()
@takes_option_groups
def distill(
    output: Output,
    *,
    teacher: Annotated[pathlib.Path, typer.Option(help="The original model.", show_default=False)],
    student: Annotated[
        pathlib.Path,
        typer.Option(
            help="What became of it by pruning or quantization; it is not changed.",
            show_default=False,
        ),
    ],
    data: TrainingSamples,
    labels: Labels = None,
    recipe: Recipe = None,
    loop: LoopOptions,
    checkpoint: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="File for the state of the training; the same command goes on from there.",
            show_default="OUTPUT.checkpoint",
            rich_help_panel=_LOOP,
        ),
    ] = None,
    loss: LossOptions,
    reports: ReportOptions,
) -> None:
    """Train a compressed model on what the original answers, and write it.

    No labels are needed, and no code: what pruning and quantization cost, learning from the
    original gives back. Weights that are zero stay zero, quantized ones stay on their grid. Needs
    the extra "train".
    """
    from onnxopt.report.distillation import distillation_lines

    reports.check(teacher, student, output)
    from onnxopt.training.distillation import DistillSettings
    from onnxopt.training.distillation import distill as run
    from onnxopt.training.parallel import joined_processes
    from onnxopt.training.recipe import read_distill_recipe

    base = DistillSettings() if recipe is None else read_distill_recipe(recipe)
    settings = _over(base, labels, loop, loss)
    with joined_processes() as processes:
        with progress(reports.is_silent or not processes.is_first) as on_step:
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
    reports.show(reports.write("distill", result.to_dict()), distillation_lines(result))


def _over(
    base: DistillSettings, labels: str | None, loop: LoopOptions, loss: LossOptions
) -> DistillSettings:
    """The recipe's settings, and over them what the command line gives."""
    chosen = loss.settings()
    if labels is not None:
        chosen["labels"] = labels
    if loop.threads is not None:
        chosen["threads"] = loop.threads  # the teacher's, in ONNX Runtime
    training = dataclasses.replace(base.training, **loop.given())
    return dataclasses.replace(base, training=training, **chosen)


def _hints(items: list[str] | None) -> dict[str, str] | None:
    """The teacher's tensors and the student's."""
    if items is None:
        return None
    return {name: inner or name for name, _, inner in (each.partition("=") for each in items)}
