"""``onnxopt inspect``."""

from __future__ import annotations

from onnxopt.cli.arguments import Json, Model, Shapes, shapes_from_texts
from onnxopt.cli.failures import reports_failures

__all__ = ["inspect"]


@reports_failures()
def inspect(model: Model, shapes: Shapes = None, as_json: Json = False) -> None:
    """Show what is in a model: operators and their cost, weights, inputs and outputs.

    Nothing is run. MACs are a formula where sizes are symbolic, and a number with --shape.
    """
    sizes = shapes_from_texts(shapes)
    from onnxopt.analysis.inspection import inspect_model
    from onnxopt.model import load
    from onnxopt.report.inspection import inspection_lines
    from onnxopt.report.json_file import json_text
    from onnxopt.report.layout import console

    facts = inspect_model(load(model), sizes)
    if as_json:
        print(json_text(facts.to_dict()))
        return
    out = console()
    for line in inspection_lines(model.name, facts):
        out.print(line)
