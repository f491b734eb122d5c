"""What becomes of the report of a command: files, JSON on stdout, or lines on the terminal."""

from __future__ import annotations

import contextvars
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxopt.cli.option_groups import OptionGroup
from onnxopt.cli.options import Json, Quiet

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["ReportOptions", "check_reports", "command_line", "is_page"]

#: The command line as it was given.
command_line: contextvars.ContextVar[str] = contextvars.ContextVar("command line", default="")


@dataclasses.dataclass(frozen=True)
class ReportOptions(OptionGroup):
    """Where the report goes."""

    report: Annotated[
        list[pathlib.Path] | None,
        typer.Option(
            metavar="FILE",
            help="Write the report to a file, too: FILE.json for machines, FILE.html to look at in "
            "a browser; may be given for each.",
            show_default=False,
        ),
    ] = None
    as_json: Json = False
    quiet: Quiet = False

    @property
    def is_silent(self) -> bool:
        """Whether the terminal is for nothing but the report, or not even that."""
        return self.quiet or self.as_json

    @property
    def wants_details(self) -> bool:
        """Whether somebody will read more than lines on a terminal."""
        return bool(self.report) or self.as_json

    def check(self, *models: pathlib.Path | None) -> None:
        """See `check_reports`."""
        check_reports(self.report or (), *models)

    def write(self, kind: str, contents: Mapping[str, Any]) -> dict[str, Any]:
        """Make a report with the command that makes it again, and write it to each file.

        Raises:
            ModelError: When a file cannot be written.
        """
        from onnxopt.report.document import document

        made = document(kind, contents, command_line.get())
        for path in self.report or ():
            _write(path, made)
        return made

    def show(self, document: Mapping[str, Any], lines: Iterable[RenderableType]) -> None:
        """Print a report on stdout: as JSON, as lines, or not at all."""
        if self.as_json:
            from onnxopt.report.json_file import json_text

            print(json_text(document))
        elif not self.quiet:
            from onnxopt.report.layout import console

            out = console()
            for line in lines:
                out.print(line)


def is_page(path: pathlib.Path) -> bool:
    """Whether a file is to be a page and not JSON."""
    return path.suffix.lower() in (".html", ".htm")


def check_reports(paths: Sequence[pathlib.Path], *models: pathlib.Path | None) -> None:
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


def _write(path: pathlib.Path, document: Mapping[str, Any]) -> None:
    if is_page(path):
        import json

        from onnxopt.report.json_file import json_text
        from onnxopt.report.page import write_page

        write_page(path, [json.loads(json_text(document))])
    else:
        from onnxopt.report.json_file import write_json

        write_json(path, document)
