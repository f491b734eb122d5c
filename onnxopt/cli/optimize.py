"""``onnxopt optimize``."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onnxopt.cli.failures import reports_failures
from onnxopt.cli.option_groups import OptionGroup, takes_option_groups
from onnxopt.cli.option_text import shapes_from_texts, tolerance_from_text, values_from_texts
from onnxopt.cli.options import (
    BudgetOptions,
    CrewOptions,
    ExternalData,
    FeedOptions,
    Model,
    Passes,
    Recipe,
    Reproducer,
    Seconds,
    Threads,
    Tolerances,
)
from onnxopt.cli.progress import progress
from onnxopt.cli.reports import ReportOptions

if TYPE_CHECKING:
    from onnxopt.optimizer import Settings

__all__ = ["optimize"]

_AIM = "What lossy passes aim at"


@dataclasses.dataclass(frozen=True)
class AimOptions(OptionGroup):
    """What lossy passes aim at."""

    target: Annotated[
        str | None,
        typer.Option(
            help="Hardware that the model is for.", show_default="auto", rich_help_panel=_AIM
        ),
    ] = None
    goal: Annotated[
        Literal["latency", "size", "balanced"] | None,
        typer.Option(help="What to gain.", show_default="latency", rich_help_panel=_AIM),
    ] = None
    effort: Annotated[
        Literal["low", "medium", "high"] | None,
        typer.Option(
            help="How much time may go into it.", show_default="medium", rich_help_panel=_AIM
        ),
    ] = None


@dataclasses.dataclass(frozen=True)
class GuardOptions(OptionGroup):
    """How the result is held against the original."""

    verify_each: Annotated[
        bool, typer.Option("--verify-each", help="Compare outputs after each pass, not just once.")
    ] = False
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not run the models at all.")
    ] = False
    no_speed_guard: Annotated[
        bool, typer.Option("--no-speed-guard", help="Do not time the result against the original.")
    ] = False

    def settings(self) -> dict[str, Any]:
        """What is chosen, by the name of the setting; None for what is not.

        Raises:
            typer.BadParameter: When options contradict each other.
        """
        if self.verify_each and self.no_verify:
            raise typer.BadParameter("--verify-each and --no-verify contradict each other")
        return {
            "verify": "each" if self.verify_each else "off" if self.no_verify else None,
            "guard_speed": False if self.no_speed_guard else None,
        }


@reports_failures()
@takes_option_groups
def optimize(
    model: Model,
    output: Annotated[
        pathlib.Path | None,
        typer.Argument(
            help="Where to write the result; left out with --in-place or --dry-run.",
            show_default=False,
        ),
    ] = None,
    *,
    passes: Passes = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PASS",
            help="Leave a pass out of the pipeline; several with commas, or again.",
            show_default=False,
        ),
    ] = None,
    recipe: Recipe = None,
    feeds: FeedOptions,
    guards: GuardOptions,
    tolerance: Tolerances = None,
    threads: Threads = None,
    seconds: Seconds = None,
    budget: BudgetOptions,
    aim: AimOptions,
    crew: CrewOptions,
    external_data: ExternalData = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace the input by the result.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do everything but write the result.")
    ] = False,
    reproducer: Reproducer = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Say what was left alone, and why; of each node, why it is in 8 bits or not.",
        ),
    ] = False,
    reports: ReportOptions,
) -> None:
    """Optimize a model, compare it with the original, and write it if it is as good or better.

    The result has the same inputs and outputs and gives the same answers in ONNX Runtime. A pass
    that makes the model wrong, larger or slower is undone, and the report says so.

    With --data, convolutions and matrix products are computed in 8 bits where that is faster, as
    far as the answers stay within the budget (--min-sqnr and the like). '--passes exact' leaves
    that out.
    """
    given: dict[str, Any] = {
        "passes": passes,
        "skip": _split(skip),
        **guards.settings(),
        "data": feeds.data,
        "shapes": shapes_from_texts(feeds.shapes) or None,
        "threads": threads,
        "seconds": seconds,
        "external_data": external_data,
        "in_place": in_place or None,
        "dry_run": dry_run or None,
        "reproducer": reproducer,
        "details": reports.wants_details or None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    given |= aim.given() | crew.given()
    tolerances = None if tolerance is None else tolerance_from_text(tolerance)
    settings = _settings(model, recipe, given, feeds.values(), tolerances, budget)
    written_to = _target(model, output, settings)

    from onnxopt.optimizer import optimize as run
    from onnxopt.report.terminal import refusal_lines, run_lines, treatment_lines

    reports.check(model, written_to)
    with progress(reports.is_silent) as on_step:
        result = run(model, written_to, settings, on_step=on_step)
        on_step("writing the report")
        document = reports.write("optimize", result.to_dict())
    lines = [*run_lines(result, written=written_to is not None and not settings.dry_run)]
    if explain:
        lines += [*refusal_lines(result.passes), *treatment_lines(result.treatments)]
    reports.show(document, lines)


def _settings(
    model: pathlib.Path,
    recipe: pathlib.Path | None,
    given: dict[str, Any],
    texts: dict[str, str],
    tolerances: tuple[float, float] | None,
    budget: BudgetOptions,
) -> Settings:
    """The recipe's settings, and over them what the command line gives."""
    from onnxopt.optimizer import Settings
    from onnxopt.recipe import Recipe, budget_from, read_recipe
    from onnxopt.runtime.compare import Tolerance

    base = Recipe({}, {}, {}, {}) if recipe is None else read_recipe(recipe)
    chosen = {**base.settings, **given}
    chosen["values"] = values_from_texts(model, {**base.values, **texts})
    chosen["tolerance"] = (
        Tolerance(**base.tolerance) if tolerances is None else Tolerance(*tolerances)
    )
    chosen["budget"] = budget_from({**base.budget, **budget.given()})
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
