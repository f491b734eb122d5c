"""``onnxopt inspect``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from onnxopt.cli.failures import reports_failures
from onnxopt.cli.option_groups import takes_option_groups
from onnxopt.cli.option_text import shapes_from_texts
from onnxopt.cli.options import FeedOptions, Model
from onnxopt.cli.progress import progress
from onnxopt.cli.reports import ReportOptions

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxopt.channels import ChannelGroup

__all__ = ["inspect"]

#: The pass that writes out what is stored in a shorter form.
_DECODE = "decode-weights"
#: What makes masks and shapes known that an export leaves as nodes.
_BEFORE_CHANNELS = "lift-constants,fold-constants,infer-shapes,fold-shapes"

Channels = Annotated[
    bool,
    typer.Option(
        "--channels",
        help="Show which channels depend on one another, which are constant, unread or pinned.",
    ),
]


Measure = Annotated[
    bool,
    typer.Option(
        "--measure",
        help="Zip, load and run the model: size, load time, memory and latency, beside those of "
        "the same model with all weights written out, if some are stored in a shorter form.",
    ),
]


@reports_failures()
@takes_option_groups
def inspect(
    model: Model,
    *,
    feeds: FeedOptions,
    channels: Channels = False,
    measure: Measure = False,
    reports: ReportOptions,
) -> None:
    """Show what is in a model: operators and their cost, weights, inputs and outputs.

    Weights that are stored in a shorter form (compact-weights) are shown as the numbers they stand
    for. The model is run with --measure only, on inputs that are made up unless given. MACs are a
    formula where sizes are symbolic, and a number with --shape. With --channels, constants are
    folded first, so that the channels can be followed.
    """
    sizes = shapes_from_texts(feeds.shapes)
    from onnxopt.analysis.inspection import inspect_model
    from onnxopt.findings import Findings
    from onnxopt.layers import layers
    from onnxopt.model import load
    from onnxopt.report.channels import channel_lines
    from onnxopt.report.inspection import inspection_lines, storage_lines
    from onnxopt.runtime.probe import environment
    from onnxopt.storage import look_at_storage

    reports.check(model)
    loaded = load(model)
    notes, coded = _write_out(loaded)
    facts = inspect_model(loaded, sizes)
    facts = dataclasses.replace(facts, notes=(*facts.notes, *notes))
    with progress(reports.is_silent or not measure) as on_step:
        storage = look_at_storage(
            model,
            loaded,
            coded,
            measure=measure,
            data=feeds.data,
            request=feeds.request(model) if measure else None,
            on_step=on_step,
        )
    found = Findings(layers(loaded)) if reports.wants_details else Findings()
    groups = _channel_groups(loaded) if channels else None
    contents = {"model": str(model), **facts.to_dict(), **found.to_dict()}
    contents["storage"] = storage.to_dict()
    contents["environment"] = environment(None)
    if groups is not None:
        contents["channels"] = [group.to_dict() for group in groups]
    lines = [*inspection_lines(model.name, facts), *storage_lines(storage)]
    reports.show(
        reports.write("inspect", contents),
        [*lines, *(channel_lines(groups) if groups is not None else ())],
    )


def _write_out(model: ir.Model) -> tuple[list[str], int]:
    """Write out the weights that are stored in a shorter form, in memory.

    Returns:
        What could not be written out, and how many were, with those in ONNX's own sparse form.
    """
    from onnxopt.model import META_SPARSE_COUNT
    from onnxopt.pass_manager import PassManager, parse_pipeline

    (report,) = PassManager(parse_pipeline(_DECODE)).run(model)
    outcome = report.outcome
    notes = [f"'{each.node}' cannot be written out: {each.reason}" for each in outcome.refusals]
    return notes, outcome.rewritten.total() + model.meta[META_SPARSE_COUNT]


def _channel_groups(model: ir.Model) -> list[ChannelGroup]:
    """The groups of the main graph. The model is changed in memory."""
    from onnxopt.channels import channel_groups, known_channels, trace
    from onnxopt.pass_manager import PassManager, parse_pipeline

    PassManager(parse_pipeline(_BEFORE_CHANNELS)).run(model)
    imports = model.opset_imports
    traced = trace(model.graph, imports.get("", imports.get("ai.onnx", 0)), model.ir_version)
    return channel_groups(traced, known_channels(traced))
