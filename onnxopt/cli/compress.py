"""``onnxopt compress``."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxopt.cli.failures import reports_failures
from onnxopt.cli.option_groups import OptionGroup, takes_option_groups
from onnxopt.cli.options import (
    BudgetOptions,
    CrewOptions,
    Labels,
    Model,
    Output,
    Recipe,
    Seconds,
    Threads,
    TrainingSamples,
)
from onnxopt.cli.progress import progress
from onnxopt.cli.reports import ReportOptions

if TYPE_CHECKING:
    from onnxopt.compress import CompressSettings, Target

__all__ = ["compress"]

_TARGET = "What is to be reached, as a share of the original"


@dataclasses.dataclass(frozen=True)
class TargetOptions(OptionGroup):
    """What is to be reached."""

    target_latency: Annotated[
        float | None,
        typer.Option(help="Time of one run.", show_default="0.5", rich_help_panel=_TARGET),
    ] = None
    target_size: Annotated[
        float | None,
        typer.Option(help="Bytes of the file.", show_default=False, rich_help_panel=_TARGET),
    ] = None
    target_macs: Annotated[
        float | None,
        typer.Option(
            help="Multiply-accumulates of one run.", show_default=False, rich_help_panel=_TARGET
        ),
    ] = None

    def target(self) -> Target | None:
        """The one that was given, if any."""
        from onnxopt.compress import Target

        targets = [
            Target(name.removeprefix("target_"), share)  # type: ignore[arg-type]  # of three
            for name, share in self.given().items()
        ]
        if len(targets) > 1:
            raise typer.BadParameter("aim at one of latency, size and multiply-accumulates")
        return targets[0] if targets else None


@reports_failures()
@takes_option_groups
def compress(
    model: Model,
    output: Output,
    *,
    data: TrainingSamples,
    aim: TargetOptions,
    labels: Labels = None,
    recipe: Recipe = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="How often to train on all samples, at most.", show_default="10"),
    ] = None,
    budget: BudgetOptions,
    threads: Threads = None,
    seconds: Seconds = None,
    crew: CrewOptions,
    reports: ReportOptions,
) -> None:
    """Prune, distill, quantize and distill again, until the target is met within the budget.

    Each stage is measured against the original; the result is the best that stays within the
    accuracy budget, and the original itself if nothing does. Needs the extra "train".
    """
    from onnxopt.report.compression import compression_lines

    reports.check(model, output)
    from onnxopt.compress import compress as run

    given = {"target": aim.target(), "threads": threads, "seconds": seconds, **crew.given()}
    settings = _settings(recipe, given, budget, labels, epochs)
    with progress(reports.is_silent) as on_step:
        result = run(model, output, data, settings, details=reports.wants_details, on_step=on_step)
    reports.show(reports.write("compress", result.to_dict()), compression_lines(result))


def _settings(
    recipe: pathlib.Path | None,
    given: dict[str, Any],
    budget: BudgetOptions,
    labels: str | None,
    epochs: float | None,
) -> CompressSettings:
    """The recipe's settings, and over them what the command line gives."""
    from onnxopt.compress import CompressSettings
    from onnxopt.compress_recipe import CompressRecipe, read_compress_recipe
    from onnxopt.recipe import budget_from

    base = (
        CompressRecipe(CompressSettings(), {}) if recipe is None else read_compress_recipe(recipe)
    )
    chosen = {key: value for key, value in given.items() if value is not None}
    chosen["budget"] = budget_from({**base.budget, **budget.given()})
    distill = base.settings.distill
    if labels is not None:
        distill = dataclasses.replace(distill, labels=labels)
    if epochs is not None:
        training = dataclasses.replace(distill.training, epochs=epochs, steps=None)
        distill = dataclasses.replace(distill, training=training)
    return dataclasses.replace(base.settings, distill=distill, **chosen)
