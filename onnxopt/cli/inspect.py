"""``onnxopt inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from onnxopt.cli.failures import reports_failures
from onnxopt.cli.option_groups import takes_option_groups
from onnxopt.cli.option_text import shapes_from_texts
from onnxopt.cli.options import Model, Shapes
from onnxopt.cli.reports import ReportOptions

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxopt.channels import ChannelGroup

__all__ = ["inspect"]

#: What makes masks and shapes known that an export leaves as nodes.
_BEFORE_CHANNELS = "lift-constants,fold-constants,infer-shapes,fold-shapes"

Channels = Annotated[
    bool,
    typer.Option(
        "--channels",
        help="Show which channels depend on one another, which are constant, unread or pinned.",
    ),
]


@reports_failures()
@takes_option_groups
def inspect(
    model: Model,
    *,
    shapes: Shapes = None,
    channels: Channels = False,
    reports: ReportOptions,
) -> None:
    """Show what is in a model: operators and their cost, weights, inputs and outputs.

    Nothing is run. MACs are a formula where sizes are symbolic, and a number with --shape. With
    --channels, constants are folded first, so that the channels can be followed.
    """
    sizes = shapes_from_texts(shapes)
    from onnxopt.analysis.inspection import inspect_model
    from onnxopt.findings import Findings
    from onnxopt.layers import layers
    from onnxopt.model import load
    from onnxopt.report.channels import channel_lines
    from onnxopt.report.inspection import inspection_lines
    from onnxopt.runtime.probe import environment

    reports.check(model)
    loaded = load(model)
    facts = inspect_model(loaded, sizes)
    found = Findings(layers(loaded)) if reports.wants_details else Findings()
    groups = _channel_groups(loaded) if channels else None
    contents = {"model": str(model), **facts.to_dict(), **found.to_dict()}
    contents["environment"] = environment(None)
    if groups is not None:
        contents["channels"] = [group.to_dict() for group in groups]
    lines = inspection_lines(model.name, facts)
    reports.show(
        reports.write("inspect", contents),
        [*lines, *(channel_lines(groups) if groups is not None else ())],
    )


def _channel_groups(model: ir.Model) -> list[ChannelGroup]:
    """The groups of the main graph. The model is changed in memory."""
    from onnxopt.channels import channel_groups, known_channels, trace
    from onnxopt.pass_manager import PassManager, parse_pipeline

    PassManager(parse_pipeline(_BEFORE_CHANNELS)).run(model)
    imports = model.opset_imports
    traced = trace(model.graph, imports.get("", imports.get("ai.onnx", 0)), model.ir_version)
    return channel_groups(traced, known_channels(traced))
