"""The option ``--report`` that every command has which measures something."""

from __future__ import annotations

import contextvars
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

__all__ = ["Report", "check_reports", "command_line", "is_page", "report_document", "write_reports"]

Report = Annotated[
    list[pathlib.Path] | None,
    typer.Option(
        metavar="FILE",
        help="Write the report to a file, too: FILE.json for machines, FILE.html to look at in a "
        "browser; may be given for each.",
        show_default=False,
    ),
]


#: The command line as it was given.
command_line: contextvars.ContextVar[str] = contextvars.ContextVar("command line", default="")


def is_page(path: pathlib.Path) -> bool:
    """Whether a file is to be a page and not JSON."""
    return path.suffix.lower() in (".html", ".htm")


def check_reports(paths: Sequence[pathlib.Path] | None, *models: pathlib.Path | None) -> None:
    """Find out before long work whether the reports can be written.

    Raises:
        ModelError: When a file cannot be written there.
        OptionError: When the packages that make pages are missing.
    """
    if not paths:
        return
    from onnxopt.report.json_file import check_writable

    for path in paths:
        check_writable(path, *models)
    if any(map(is_page, paths)):
        from onnxopt.report.page import check_page_possible

        check_page_possible()


def report_document(kind: str, contents: Mapping[str, Any]) -> dict[str, Any]:
    """A report as it is printed and written: with the command that makes it again."""
    from onnxopt.report.document import document

    return document(kind, contents, command_line.get())


def write_reports(paths: Sequence[pathlib.Path] | None, document: Mapping[str, Any]) -> None:
    """Write a report to each file.

    Raises:
        ModelError: When a file cannot be written.
    """
    for path in paths or ():
        if is_page(path):
            import json

            from onnxopt.report.json_file import json_text
            from onnxopt.report.page import write_page

            write_page(path, [json.loads(json_text(document))])
        else:
            from onnxopt.report.json_file import write_json

            write_json(path, document)
