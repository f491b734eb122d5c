"""A page to look at, made from the JSON of reports alone: one file that needs no network."""

from onnxopt.report.page.render import (
    check_page_possible,
    page_from_files,
    pages_are_possible,
    write_page,
)

__all__ = ["check_page_possible", "page_from_files", "pages_are_possible", "write_page"]
