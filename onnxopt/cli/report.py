"""``onnxopt report``."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from onnxopt.cli.failures import reports_failures
from onnxopt.cli.progress import progress
from onnxopt.cli.reports import check_reports, is_page

__all__ = ["report"]


@reports_failures()
def report(
    files: Annotated[
        list[pathlib.Path],
        typer.Argument(
            metavar="REPORT.json [OTHER.json] PAGE.html",
            help="One report, or two to compare, and the page to write.",
            show_default=False,
        ),
    ],
) -> None:
    """Make a page to look at from the JSON of a report, or of two beside each other.

    The page is one file that needs no network.
    """
    *sources, target = files
    if not sources or not is_page(target) or any(map(is_page, sources)):
        raise typer.BadParameter(
            "name one or two reports and then the page: report.json page.html",
            param_hint="REPORT.json",
        )
    check_reports([target], *sources)
    from onnxopt.report.page import page_from_files

    with progress() as on_step:
        on_step("making the page")
        page_from_files(sources, target)
