"""``onnxopt passes``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from onnxopt.cli.failures import reports_failures
from onnxopt.cli.options import Json, complete_passes

if TYPE_CHECKING:
    from onnxopt.pass_catalogue import PassFacts

__all__ = ["passes"]


@reports_failures()
def passes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Show this pass in full.", show_default=False, autocompletion=complete_passes
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List all passes and pipelines, or show one pass: what it does, its options and rules."""
    from onnxopt.pass_catalogue import describe_pass, list_passes, list_pipelines
    from onnxopt.report.json_file import json_text

    if name is not None:
        facts = describe_pass(name)
        if as_json:
            print(json_text(facts.to_dict()))
        else:
            _show(facts)
        return
    found, pipelines = list_passes(), list_pipelines()
    if as_json:
        document = {"passes": [each.to_dict() for each in found], "pipelines": pipelines}
        print(json_text(document))
    else:
        _list(found, pipelines)


def _list(found: list[PassFacts], pipelines: dict[str, str]) -> None:
    from onnxopt.report.layout import console, heading, new_table

    out = console()
    table = new_table("pass", "kind", "what it does")
    for facts in found:
        table.add_row(facts.name, facts.kind, facts.trouble or facts.summary)
    out.print(table)
    out.print(heading("Pipelines"))
    pipeline_table = new_table("name", "passes")
    for name, text in pipelines.items():
        pipeline_table.add_row(name, ", ".join(text.split(",")))
    out.print(pipeline_table)


def _show(facts: PassFacts) -> None:
    from onnxopt.report.layout import console, heading, new_table

    out = console()
    out.print(f"{facts.name} ({facts.kind})\n", style="bold")
    out.print(facts.documentation)
    if facts.options:
        out.print(heading("Options"))
        options = new_table("option", "takes", "default")
        for option in facts.options:
            options.add_row(option.name, option.type, option.default)
        out.print(options)
    if facts.rules:
        out.print(heading("Rules"))
        rules = new_table("rule", "looks at", "what it does")
        for rule in facts.rules:
            rules.add_row(rule.name, ", ".join(rule.anchors), rule.summary)
        out.print(rules)
