"""From documents to the page: templates, charts, style and script in one file."""

from __future__ import annotations

import functools
import importlib.resources
import importlib.util
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxopt.errors import ModelError, OptionError
from onnxopt.report.json_file import write_text
from onnxopt.report.page import views
from onnxopt.report.page.comparison import compare
from onnxopt.report.page.figures import Figure

if TYPE_CHECKING:
    import jinja2

__all__ = [
    "check_page_possible",
    "page_from_files",
    "pages_are_possible",
    "render_page",
    "write_page",
]

#: What a page is made with; the extra ``report`` installs them.
_MADE_WITH = ("jinja2", "altair", "vl_convert")
#: So many reports go on one page.
_MOST_REPORTS = 2


def check_page_possible() -> None:
    """Find out before long work whether pages can be made.

    Raises:
        OptionError: When a package is missing.
    """
    missing = _missing()
    if missing:
        raise OptionError(
            f"a page needs the package {' and '.join(missing)}: pip install 'onnxopt[report]'"
        )


def pages_are_possible() -> bool:
    """Whether all that makes pages is there."""
    return not _missing()


def _missing() -> list[str]:
    return [name for name in _MADE_WITH if importlib.util.find_spec(name) is None]


def write_page(path: pathlib.Path, documents: Sequence[Mapping[str, Any]]) -> None:
    """Write the page of one report, or of two beside each other.

    Raises:
        OptionError: When a package that makes pages is missing.
        ModelError: When a document is no report, or the file cannot be written.
    """
    check_page_possible()
    write_text(path, render_page(documents))


def page_from_files(sources: Sequence[pathlib.Path], target: pathlib.Path) -> None:
    """Make a page from one or two files of JSON.

    Raises:
        OptionError: When a package that makes pages is missing, or there are too many files.
        ModelError: When a file cannot be read or is no report, or the page cannot be written.
    """
    if len(sources) > _MOST_REPORTS:
        raise OptionError(f"a page shows one report or compares two, not {len(sources)}")
    check_page_possible()
    write_page(target, [_read(source) for source in sources])


def render_page(documents: Sequence[Mapping[str, Any]]) -> str:
    """The page as text.

    Raises:
        ModelError: When a document is no report.
    """
    room = views.ROOM // (2 * len(documents) - 1)  # of two, layers are shown together too
    reports = [views.view(document, index, room) for index, document in enumerate(documents)]
    compared = compare(documents, room) if len(documents) > 1 else None
    figures = [figure for report in reports for figure in report.figures]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            reports=reports,
            compared=compared,
            title=" and ".join(dict.fromkeys(report.title for report in reports)),
            style=_asset("style.css"),
            script=_asset("page.js"),
            library=_chart_library() if figures else "",
            figures=_embedded({figure.id: figure.spec for figure in figures}),
            data=_embedded(
                {name: rows for report in reports for name, rows in report.data.items()}
            ),
            histograms=_embedded({report.prefix: report.histograms for report in reports}),
            tried=_embedded({report.prefix: report.tried for report in reports}),
        )
    )


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(
            f"{path} is no report: it is not JSON ({error}); make one with --report FILE.json"
        ) from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} is no report; make one with --report FILE.json")
    try:
        views.kind_of(document)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return document


def _embedded(data: Any) -> str:
    """Data inside a script element, which no text in it can end."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@functools.cache
def _chart_library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script")


@functools.cache
def _asset(name: str) -> str:
    folder = importlib.resources.files("onnxopt.report.page") / "assets"
    return (folder / name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onnxopt.report.page", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["Figure"] = Figure
    return environment
