"""``onnxopt batch``."""

from __future__ import annotations

import pathlib
import sys
from typing import Annotated

import typer

from onnxopt.cli.failures import INTERRUPTED, reports_failures
from onnxopt.cli.option_groups import takes_option_groups
from onnxopt.cli.options import CrewOptions, Json, Passes, Quiet, Recipe
from onnxopt.cli.progress import progress
from onnxopt.cli.reports import ReportOptions

__all__ = ["batch"]


@reports_failures()
@takes_option_groups
def batch(
    models: Annotated[
        pathlib.Path,
        typer.Argument(help="The folder of models, searched to its depth.", show_default=False),
    ],
    output: Annotated[
        pathlib.Path,
        typer.Argument(help="The folder of results, made if missing.", show_default=False),
    ],
    *,
    recipe: Recipe = None,
    passes: Passes = None,
    crew: CrewOptions,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Optimize all models of a folder, each as 'onnxopt optimize' does.

    Samples beside a model, NAME.npz or a folder NAME of .npz files, are its own. The output folder
    gets the results, a report beside each, and batch.json and batch.html with a row for each. A
    model that fails does not stop the others; the exit code is 1 then. Run it again to go on:
    models that are finished and have not changed are left alone.

    Times are measured while the other workers wait.
    """
    from onnxopt.batch import optimize_folder
    from onnxopt.recipe import Recipe as Settings
    from onnxopt.recipe import read_recipe
    from onnxopt.report.batch import batch_lines
    from onnxopt.report.page import pages_are_possible

    settings = Settings({}, {}, {}, {}) if recipe is None else read_recipe(recipe)
    options: list[str] = [] if recipe is None else ["--recipe", str(recipe.absolute())]
    if passes is not None:
        settings = settings.replace(passes=passes)
        options += ["--passes", passes]
    with crew.open(settings.settings) as workers, progress(quiet or as_json) as on_step:
        try:
            result = optimize_folder(
                models, output, settings, workers, options=options, on_step=on_step
            )
        except KeyboardInterrupt:
            print(f"onnxopt: interrupted; what is finished is in {output}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        files = [output / "batch.json"]
        if pages_are_possible():
            files.append(output / "batch.html")
        reports = ReportOptions(report=files, as_json=as_json, quiet=quiet)
        document = reports.write("batch", result.to_dict())
    reports.show(document, batch_lines(result, files[-1]))
    if result.failed:
        raise typer.Exit(1)
