"""``onnxopt decode``."""

from __future__ import annotations

from onnxopt.cli.failures import reports_failures
from onnxopt.cli.options import ExternalData, Json, Model, Output, Quiet

__all__ = ["decode"]

_PASS = "decode-weights"


@reports_failures()
def decode(
    model: Model,
    output: Output,
    external_data: ExternalData = None,
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
    save(loaded, output, external_data or "auto")
    count = outcome.rewritten.total()
    sizes = bytes_on_disk(model), bytes_on_disk(output)
    if as_json:
        print(json_text({"decoded": count, "bytes_before": sizes[0], "bytes_after": sizes[1]}))
    elif not quiet:
        print(f"{count} tensors decoded; {sizes[0]:,} bytes became {sizes[1]:,}")
