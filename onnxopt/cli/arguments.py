"""Arguments and options that several commands share, and how their text is read."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    import numpy as np

    from onnxopt.data import FeedRequest

__all__ = [
    "Data",
    "Effort",
    "Evaluate",
    "Goal",
    "InputValues",
    "Json",
    "MaxDrop",
    "MinAgreement",
    "MinCosine",
    "MinSqnr",
    "Model",
    "Passes",
    "Quiet",
    "Reproducer",
    "Seconds",
    "Shapes",
    "Target",
    "Threads",
    "Tolerances",
    "complete_passes",
    "feed_request",
    "named_texts",
    "shape_from_text",
    "shapes_from_texts",
    "tolerance_from_text",
    "values_from_texts",
]

Model = Annotated[
    pathlib.Path, typer.Argument(help="The model, an .onnx file.", show_default=False)
]
Data = Annotated[
    pathlib.Path | None,
    typer.Option(
        help="Inputs to run with: a folder of .npz files, one feed each, or one .npz of stacked "
        "samples. Without it, inputs are made up from the model's signature.",
        show_default=False,
    ),
]
InputValues = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=VALUE",
        help="A whole input, where inputs are made up: numbers with commas, or an .npy file.",
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
Reproducer = Annotated[
    pathlib.Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where to write what shows a failure again.",
        show_default=False,
    ),
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

_BUDGET = "What lossy passes may cost"
MinSqnr = Annotated[
    float | None,
    typer.Option(
        help="Least signal-to-noise ratio of any output, in dB; 20 dB is 1 % of noise.",
        show_default="20",
        rich_help_panel=_BUDGET,
    ),
]
MinAgreement = Annotated[
    float | None,
    typer.Option(
        help="Least share of equal decisions (classes, scores above one half), where an output is "
        "one.",
        show_default="0.97",
        rich_help_panel=_BUDGET,
    ),
]
MinCosine = Annotated[
    float | None,
    typer.Option(
        help="Least mean cosine of any output.", show_default=False, rich_help_panel=_BUDGET
    ),
]
Evaluate = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FUNCTION",
        help="A measure of your own instead: takes the path of a model, gives a number that is "
        "better when higher.",
        show_default=False,
        rich_help_panel=_BUDGET,
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="How much lower than the original's that number may be.",
        show_default="0.01",
        rich_help_panel=_BUDGET,
    ),
]
_AIM = "What lossy passes aim at"
Target = Annotated[
    str | None,
    typer.Option(help="Hardware that the model is for.", show_default="auto", rich_help_panel=_AIM),
]
Goal = Annotated[
    Literal["latency", "size", "balanced"] | None,
    typer.Option(help="What to gain.", show_default="latency", rich_help_panel=_AIM),
]
Effort = Annotated[
    Literal["low", "medium", "high"] | None,
    typer.Option(help="How much time may go into it.", show_default="medium", rich_help_panel=_AIM),
]


def named_texts(items: list[str] | None, separator: str, option: str) -> dict[str, str]:
    """Split ``name<separator>text`` items; names may hold colons and slashes."""
    found: dict[str, str] = {}
    for item in items or ():
        left, middle, right = (
            item.partition(separator) if separator == "=" else item.rpartition(separator)
        )
        if not middle or not left or not right:
            raise typer.BadParameter(
                f"'{item}' is not NAME{separator}{'VALUE' if separator == '=' else 'SIZES'}",
                param_hint=option,
            )
        found[left] = right
    return found


def shape_from_text(text: str) -> tuple[int, ...]:
    """Read ``1,3,224,224``; ``?`` and ``-1`` leave a size open.

    Raises:
        ValueError: When a size is no number or is below -1.
    """
    sizes = tuple(-1 if part.strip() == "?" else int(part) for part in text.split(","))
    if min(sizes) < -1:
        raise ValueError(text)
    return sizes


def shapes_from_texts(items: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Read the values of ``--shape``."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, text in named_texts(items, ":", "--shape").items():
        try:
            shapes[name] = shape_from_text(text)
        except ValueError as error:
            raise typer.BadParameter(
                f"'{text}' is not a shape: write sizes with commas, such as 1,3,224,224",
                param_hint="--shape",
            ) from error
    return shapes


def tolerance_from_text(text: str) -> tuple[float, float]:
    """Read ``rtol,atol``."""
    try:
        rtol, atol = (float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"'{text}' is not RTOL,ATOL; write 1e-3,1e-5", param_hint="--tolerance"
        ) from error
    if not (rtol >= 0 and atol >= 0):
        raise typer.BadParameter("tolerances are at least 0", param_hint="--tolerance")
    return rtol, atol


def feed_request(
    model: pathlib.Path, values: list[str] | None, shapes: list[str] | None
) -> FeedRequest:
    """What the options ``--input`` and ``--shape`` say together."""
    texts, sizes = named_texts(values, "=", "--input"), shapes_from_texts(shapes)
    from onnxopt.data import FeedRequest

    return FeedRequest(values_from_texts(model, texts), sizes)


def values_from_texts(
    model: pathlib.Path, texts: Mapping[str, str]
) -> dict[str, np.ndarray[Any, Any]]:
    """Read inputs given as text in the types that the model's inputs have."""
    if not texts:
        return {}
    from onnxopt.data import input_named, value_from_text
    from onnxopt.model import load

    loaded = load(model)
    return {name: value_from_text(text, input_named(loaded, name)) for name, text in texts.items()}
