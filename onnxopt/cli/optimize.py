"""``onnxopt optimize``."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onnxopt.cli.arguments import (
    Data,
    Effort,
    Evaluate,
    Goal,
    InputValues,
    Json,
    MaxDrop,
    MinAgreement,
    MinCosine,
    MinSqnr,
    Model,
    Passes,
    Quiet,
    Reproducer,
    Seconds,
    Shapes,
    Target,
    Threads,
    Tolerances,
    named_texts,
    shapes_from_texts,
    tolerance_from_text,
    values_from_texts,
)
from onnxopt.cli.failures import reports_failures
from onnxopt.cli.progress import progress
from onnxopt.cli.reports import Report, check_reports, report_document, write_reports

if TYPE_CHECKING:
    from onnxopt.optimizer import Settings

__all__ = ["optimize"]


@reports_failures()
def optimize(
    model: Model,
    output: Annotated[
        pathlib.Path | None,
        typer.Argument(
            help="Where to write the result; left out with --in-place or --dry-run.",
            show_default=False,
        ),
    ] = None,
    passes: Passes = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PASS",
            help="Leave a pass out of the pipeline; several with commas, or again.",
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
    verify_each: Annotated[
        bool, typer.Option("--verify-each", help="Compare outputs after each pass, not just once.")
    ] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not run the models at all.")
    ] = False,
    no_speed_guard: Annotated[
        bool, typer.Option("--no-speed-guard", help="Do not time the result against the original.")
    ] = False,
    tolerance: Tolerances = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what was left alone, and why.")
    ] = False,
    report: Report = None,
    threads: Threads = None,
    seconds: Seconds = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do everything but write the result.")
    ] = False,
    data: Data = None,
    min_sqnr: MinSqnr = None,
    min_agreement: MinAgreement = None,
    min_cosine: MinCosine = None,
    evaluate: Evaluate = None,
    max_drop: MaxDrop = None,
    target: Target = None,
    goal: Goal = None,
    effort: Effort = None,
    input_values: InputValues = None,
    shapes: Shapes = None,
    external_data: Annotated[
        Literal["auto", "always", "never"] | None,
        typer.Option(
            help="Weights in a file beside the model: as the input has it, always, or never.",
            show_default="auto",
        ),
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace the input by the result.")
    ] = False,
    reproducer: Reproducer = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Optimize a model, compare it with the original, and write it if it is as good or better.

    The result has the same inputs and outputs and gives the same answers in ONNX Runtime. A pass
    that makes the model wrong, larger or slower is undone, and the report says so.

    With --data, convolutions and matrix products are computed in 8 bits where that is faster, as
    far as the answers stay within the budget (--min-sqnr and the like). '--passes exact' leaves
    that out.
    """
    if verify_each and no_verify:
        raise typer.BadParameter("--verify-each and --no-verify contradict each other")
    given: dict[str, Any] = {
        "passes": passes,
        "skip": _split(skip),
        "verify": "each" if verify_each else "off" if no_verify else None,
        "guard_speed": False if no_speed_guard else None,
        "data": data,
        "shapes": shapes_from_texts(shapes) or None,
        "threads": threads,
        "seconds": seconds,
        "external_data": external_data,
        "in_place": in_place or None,
        "dry_run": dry_run or None,
        "reproducer": reproducer,
        "details": True if report or as_json else None,
        "target": target,
        "goal": goal,
        "effort": effort,
    }
    budget: dict[str, Any] = {
        "min_sqnr": min_sqnr,
        "min_agreement": min_agreement,
        "min_cosine": min_cosine,
        "evaluate": evaluate,
        "max_drop": max_drop,
    }
    tolerances = None if tolerance is None else tolerance_from_text(tolerance)
    texts = named_texts(input_values, "=", "--input")
    settings = _settings(model, recipe, given, texts, tolerances, budget)
    written_to = _target(model, output, settings)

    from onnxopt.optimizer import optimize as run
    from onnxopt.report.json_file import json_text
    from onnxopt.report.layout import console
    from onnxopt.report.terminal import refusal_lines, run_lines

    check_reports(report, model, written_to)
    with progress(quiet or as_json) as on_step:
        result = run(model, written_to, settings, on_step=on_step)
        on_step("writing the report")
        document = report_document("optimize", result.to_dict())
        write_reports(report, document)
    if as_json:
        print(json_text(document))
    elif not quiet:
        out = console()
        for line in run_lines(result, written=written_to is not None and not settings.dry_run):
            out.print(line)
        if explain:
            for line in refusal_lines(result.passes):
                out.print(line)


def _settings(
    model: pathlib.Path,
    recipe: pathlib.Path | None,
    given: dict[str, Any],
    texts: dict[str, str],
    tolerances: tuple[float, float] | None,
    budget: dict[str, Any],
) -> Settings:
    """The recipe's settings, and over them what the command line gives."""
    from onnxopt.optimizer import Settings
    from onnxopt.recipe import Recipe, budget_from, read_recipe
    from onnxopt.runtime.compare import Tolerance

    base = Recipe({}, {}, {}, {}) if recipe is None else read_recipe(recipe)
    chosen = {**base.settings, **{key: value for key, value in given.items() if value is not None}}
    chosen["values"] = values_from_texts(model, {**base.values, **texts})
    chosen["tolerance"] = (
        Tolerance(**base.tolerance) if tolerances is None else (Tolerance(*tolerances))
    )
    chosen["budget"] = budget_from(
        {**base.budget, **{key: value for key, value in budget.items() if value is not None}}
    )
    return Settings(**chosen)


def _target(
    model: pathlib.Path, output: pathlib.Path | None, settings: Settings
) -> pathlib.Path | None:
    if output is not None:
        return output
    if settings.in_place:
        return model
    if not settings.dry_run:
        raise typer.BadParameter(
            "name a file for the result, or say --in-place or --dry-run", param_hint="OUTPUT"
        )
    return None


def _split(names: list[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    return tuple(name.strip() for item in names for name in item.split(",") if name.strip())
