"""``onnxopt decode``."""

from __future__ import annotations

import pathlib
from typing import Annotated, Literal

import typer

from onnxopt.cli.arguments import Json, Model, Quiet
from onnxopt.cli.failures import reports_failures

__all__ = ["decode"]

_PASS = "decode-weights"


@reports_failures()
def decode(
    model: Model,
    output: Annotated[
        pathlib.Path, typer.Argument(help="Where to write the dense model.", show_default=False)
    ],
    external_data: Annotated[
        Literal["auto", "always", "never"],
        typer.Option(help="Weights in a file beside the model: as the input has it, or not."),
    ] = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a model dense again whose weights were stored compactly, byte for byte.

    This is the inverse of the pass compact-weights.
    """
    from onnxopt.errors import ModelError
    from onnxopt.model import bytes_on_disk, load, save
    from onnxopt.pass_manager import PassManager, parse_pipeline
    from onnxopt.report.json_file import json_text

    if output.exists() and model.exists() and output.samefile(model):
        raise ModelError(f"{output} is the input itself; name another output")
    loaded = load(model)
    (report,) = PassManager(parse_pipeline(_PASS)).run(loaded)
    outcome = report.outcome
    if outcome.refusals:
        first = outcome.refusals[0]
        raise ModelError(f"'{first.node}' cannot be decoded: {first.reason}")
    save(loaded, output, external_data)
    count = outcome.rewritten.total()
    sizes = bytes_on_disk(model), bytes_on_disk(output)
    if as_json:
        print(json_text({"decoded": count, "bytes_before": sizes[0], "bytes_after": sizes[1]}))
    elif not quiet:
        print(f"{count} tensors decoded; {sizes[0]:,} bytes became {sizes[1]:,}")
