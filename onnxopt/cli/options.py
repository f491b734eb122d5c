"""Arguments and options that several commands share."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onnxopt.cli.option_groups import OptionGroup
from onnxopt.cli.option_text import named_texts, shapes_from_texts, values_from_texts

if TYPE_CHECKING:
    from onnxopt.data import FeedRequest
    from onnxopt.parallel import Crew

__all__ = [
    "BudgetOptions",
    "CrewOptions",
    "ExternalData",
    "FeedOptions",
    "Json",
    "Labels",
    "Model",
    "Output",
    "Passes",
    "Quiet",
    "Recipe",
    "Reproducer",
    "Seconds",
    "Shapes",
    "Threads",
    "Tolerances",
    "TrainingSamples",
    "complete_passes",
]

Model = Annotated[
    pathlib.Path, typer.Argument(help="The model, an .onnx file.", show_default=False)
]
Output = Annotated[
    pathlib.Path, typer.Argument(help="Where to write the result.", show_default=False)
]
Recipe = Annotated[
    pathlib.Path | None,
    typer.Option(
        metavar="FILE.toml",
        help="Read settings from a file; options given here go before it.",
        show_default=False,
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME:SIZES",
        help="Shape of an input, such as image:1,3,224,224; ? leaves a size open.",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads for one operator.", show_default="1")
]
Seconds = Annotated[
    float | None,
    typer.Option(min=0.0, help="Seconds for one measurement of speed.", show_default="1"),
]
Tolerances = Annotated[
    str | None,
    typer.Option(
        "--tolerance",
        metavar="RTOL,ATOL",
        help="How far a number may be off: RTOL of itself, or ATOL of the output's largest "
        "magnitude.",
        show_default="0.001,2e-05",
    ),
]
ExternalData = Annotated[
    Literal["auto", "always", "never"] | None,
    typer.Option(
        help="Weights in a file beside the model: as the input has it, always, or never.",
        show_default="auto",
    ),
]
Reproducer = Annotated[
    pathlib.Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where to write what shows a failure again.",
        show_default=False,
    ),
]
TrainingSamples = Annotated[
    pathlib.Path,
    typer.Option(
        "--data",
        help="Samples to learn from: a folder of .npz files, one feed each, or one .npz of "
        "stacked samples. One in ten is held out to judge with.",
        show_default=False,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Array of labels in the data, if there are some.", show_default=False
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the report as JSON on stdout, and nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def complete_passes(incomplete: str) -> list[str]:
    """Passes and pipelines that the last part of a pipeline could be."""
    from onnxopt.pass_manager import available_passes, available_pipelines

    before, comma, begun = incomplete.rpartition(",")
    known = sorted({*available_passes(), *available_pipelines()})
    return [f"{before}{comma}{name}" for name in known if name.startswith(begun)]


Passes = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete_passes,
        metavar="PIPELINE",
        help="Pipeline such as 'fold-constants{max-bytes=0},fuse-affine', or its name.",
        show_default="exact; tuned with --data",
    ),
]


@dataclasses.dataclass(frozen=True)
class FeedOptions(OptionGroup):
    """What models run with."""

    data: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Inputs to run with: a folder of .npz files, one feed each, or one .npz of "
            "stacked samples. Without it, inputs are made up from the model's signature.",
            show_default=False,
        ),
    ] = None
    input_values: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=VALUE",
            help="A whole input, where inputs are made up: numbers with commas, or an .npy file.",
            show_default=False,
        ),
    ] = None
    shapes: Shapes = None

    def values(self) -> dict[str, str]:
        """The values of ``--input``, as text."""
        return named_texts(self.input_values, "=", "--input")

    def request(self, model: pathlib.Path) -> FeedRequest:
        """What ``--input`` and ``--shape`` say together, for the inputs of a model."""
        texts, sizes = self.values(), shapes_from_texts(self.shapes)
        from onnxopt.data import FeedRequest

        return FeedRequest(values_from_texts(model, texts), sizes)


@dataclasses.dataclass(frozen=True)
class CrewOptions(OptionGroup):
    """Who does the work that can be divided."""

    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that share the work; the result is the same.",
            show_default="1",
        ),
    ] = None
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Have the workers of a dask cluster share it: tcp://host:8786.",
            show_default=False,
        ),
    ] = None

    def open(self, settings: Mapping[str, Any]) -> Crew:
        """Those who are asked for here, or else by the settings of a recipe.

        Raises:
            OptionError: When both kinds are asked for, or the cluster cannot be reached.
        """
        from onnxopt.parallel import open_crew

        chosen = self.given() or {
            name: settings[name] for name in ("workers", "scheduler") if name in settings
        }
        return open_crew(**chosen)


_BUDGET = "What lossy passes may cost"


@dataclasses.dataclass(frozen=True)
class BudgetOptions(OptionGroup):
    """Fields of `onnxopt.accuracy.Budget`, for `onnxopt.recipe.budget_from`."""

    min_sqnr: Annotated[
        float | None,
        typer.Option(
            help="Least signal-to-noise ratio of any output, in dB; 20 dB is 1 % of noise.",
            show_default="20",
            rich_help_panel=_BUDGET,
        ),
    ] = None
    min_agreement: Annotated[
        float | None,
        typer.Option(
            help="Least share of equal decisions (classes, scores above one half), where an output "
            "is one.",
            show_default="0.97",
            rich_help_panel=_BUDGET,
        ),
    ] = None
    min_cosine: Annotated[
        float | None,
        typer.Option(
            help="Least mean cosine of any output.", show_default=False, rich_help_panel=_BUDGET
        ),
    ] = None
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="A measure of your own instead: takes the path of a model, gives a number that is "
            "better when higher.",
            show_default=False,
            rich_help_panel=_BUDGET,
        ),
    ] = None
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="How much lower than the original's that number may be.",
            show_default="0.01",
            rich_help_panel=_BUDGET,
        ),
    ] = None
