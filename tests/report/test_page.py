"""Pages of reports in a real browser, without a network."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from onnxopt.report.json_file import json_text
from onnxopt.report.page import write_page
from tests.report.browser import DESKTOP, PHONE, Browser, browser
from tests.report.examples import NASTY, full_document

#: The issue's limit for a page.
MOST_BYTES = 3_000_000


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as found:
        yield found


def page(path: pathlib.Path, *documents: dict[str, Any]) -> pathlib.Path:
    write_page(path, [json.loads(json_text(document)) for document in documents])
    return path


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return page(tmp_path_factory.mktemp("page") / "full.html", full_document())


def column(window: Browser, table: str, number: int) -> list[str]:
    cells = f"[...document.querySelectorAll('#{table} tbody tr')].filter(r => !r.hidden)"
    found: Sequence[str] = window.ask(f"{cells}.map(row => row.cells[{number}].textContent)")
    return list(found)


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_overflows_and_nothing_is_complained_of(
    window: Browser, full: pathlib.Path, size: tuple[int, int], dark: bool
) -> None:
    window.open(full, size, dark=dark)
    assert window.overflow() <= 0
    assert window.complaints() == []
    for figure in window.ask("[...document.querySelectorAll('figure.chart')].map(f => f.id)"):
        inside = f"document.querySelector('#{figure} svg')"
        width = window.ask(f"{inside}.getBoundingClientRect().width")
        room = window.ask(f"{inside}.closest('figure').getBoundingClientRect().width")
        assert 0 < width <= room + 1, figure


def test_every_plot_has_axes_with_titles_and_units(window: Browser, full: pathlib.Path) -> None:
    window.open(full)
    titles: dict[str, list[str]] = window.ask(
        "Object.fromEntries([...document.querySelectorAll('figure.chart')].map(f =>"
        " [f.id, [...f.querySelectorAll('.role-axis-title')].map(t => t.textContent)]))"
    )
    assert len(titles) == 11
    for figure, found in titles.items():
        assert found, figure
    assert titles["r0-latency"] == ["time of one run (ms)"]
    assert titles["r0-tradeoff"] == [
        "speed (times the original's)",
        "signal to noise of the worst output (dB)",
    ]
    assert "weights (MiB)" in titles["r0-bytes"]
    assert "zeros (% of the weights)" in titles["r0-zeros"]


def test_colours_are_dark_where_the_system_is_and_can_be_chosen(
    window: Browser, full: pathlib.Path
) -> None:
    def brightness() -> int:
        colour = window.ask("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(","))

    def of_text_in_plots() -> str:
        text = "document.querySelector('#r0-latency .role-axis-title text')"
        colour: str = window.ask(f"getComputedStyle({text}).fill")
        return colour

    window.open(full, dark=True)
    dark_text = of_text_in_plots()
    assert brightness() < 150
    window.open(full, dark=False)
    assert brightness() > 600
    assert of_text_in_plots() != dark_text
    window.do("document.getElementById('theme').click()")
    assert brightness() < 150
    assert of_text_in_plots() == dark_text
    window.do("localStorage.clear()")


def test_headers_sort_and_say_so(window: Browser, full: pathlib.Path) -> None:
    window.open(full)
    header = "document.querySelectorAll('#r0-layers thead th')"
    names = window.ask(f"[...{header}].map(th => th.textContent)")
    place = names.index("S/N (dB)")
    window.do(f"{header}[{place}].querySelector('button').click()")
    assert window.ask(f"{header}[{place}].getAttribute('aria-sort')") == "descending"
    falling = column(window, "r0-layers", place)
    assert falling[0] == "equal"
    assert [float(each) for each in falling[1:]] == sorted(map(float, falling[1:]), reverse=True)
    window.do(f"{header}[{place}].querySelector('button').click()")
    assert window.ask(f"{header}[{place}].getAttribute('aria-sort')") == "ascending"
    assert column(window, "r0-layers", place) == falling[::-1]
    window.do(f"{header}[0].querySelector('button').click()")
    assert window.ask(f"{header}[{place}].getAttribute('aria-sort')") == "none"
    layers = column(window, "r0-layers", 0)
    assert layers.index("block_2/conv_9") < layers.index("block_2/conv_10")


def test_the_box_filters(window: Browser, full: pathlib.Path) -> None:
    window.open(full)
    window.do("document.getElementById('r0-layers-filter').focus()")
    window.press("int8 conv_7")
    assert column(window, "r0-layers", 0) == ["block_1/conv_7"]
    assert window.ask("document.querySelector('#r0-layers output').textContent") == "1 of 40"


def test_everything_can_be_reached_by_keyboard(window: Browser, full: pathlib.Path) -> None:
    from selenium.webdriver.common.keys import Keys

    window.open(full)
    window.press(Keys.TAB)
    assert window.ask("document.activeElement.textContent") == "To the content"
    reached = set()
    for _ in range(200):
        window.press(Keys.TAB)
        reached.add(
            window.ask(
                "document.activeElement.textContent.trim().slice(0, 60)"
                " || document.activeElement.id"
            )
        )
        if "S/N (dB)" in reached and "next" in reached:
            break
    assert {"What was tried", "int8 but for 4 regions", "r0-layers-filter", "time"} <= reached
    assert {"previous", "next"} <= reached
    window.do("document.querySelector('#r0-layers thead button').focus()")
    window.press(Keys.ENTER)
    assert (
        window.ask("document.querySelector('#r0-layers thead th').getAttribute('aria-sort')")
        == "ascending"
    )


def test_a_click_shows_what_a_tried_model_is_made_of(window: Browser, full: pathlib.Path) -> None:
    window.open(full)
    window.do("document.querySelector('[data-pick=\"3\"]').click()")
    said = window.ask("document.getElementById('r0-picked').textContent")
    assert "int8 but for 3 regions" in said
    assert "noisier than the budget allows" in said
    assert "region 2: float32" in said
    point = "document.querySelectorAll('#r0-tradeoff .mark-symbol.layer_1_marks path')[4]"
    window.do(f"{point}.scrollIntoView({{block: 'center'}})")
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(window.driver).move_to_element(window.ask(point)).click().perform()
    window.wait("document.getElementById('r0-picked').textContent.includes('for 4 regions')")
    window.wait("document.querySelector('#vg-tooltip-element.visible') !== null")
    assert "1.58" in window.ask("document.querySelector('#vg-tooltip-element').textContent")


def test_the_histogram_of_any_tensor(window: Browser, full: pathlib.Path) -> None:
    window.open(full)
    bars = "document.querySelectorAll('#r0-histogram .mark-rect path').length"
    assert window.ask(bars) == 100
    assert "keeps -2.500 to 2.500" in window.ask("document.getElementById('r0-about').textContent")
    assert window.ask("document.getElementById('r0-tensor').value") == NASTY
    window.do("document.querySelector('[data-step=\"1\"]').click()")
    window.wait("document.getElementById('r0-tensor').value === 'tensor_1'")
    window.wait(f"{bars} === 100")
    assert window.complaints() == []


def test_names_are_not_markup(window: Browser, full: pathlib.Path) -> None:
    window.open(full)
    assert window.ask("document.querySelectorAll('b').length") == 0
    assert NASTY in column(window, "r0-layers", 0)


def test_absent_sections_are_absent(window: Browser, tmp_path: pathlib.Path) -> None:
    document = full_document()
    for section in ("layers", "search", "stages", "histograms", "curves"):
        del document[section]
    window.open(page(tmp_path / "page.html", document))
    headings = window.ask("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert headings == ["What came out", "The pipeline", "How to see this again"]
    assert window.complaints() == []


def test_two_runs_on_one_page(window: Browser, tmp_path: pathlib.Path) -> None:
    path = page(tmp_path / "two.html", full_document(), full_document(shift=4.0))
    for size in (PHONE, DESKTOP):
        window.open(path, size)
        assert window.overflow() <= 0
        assert window.complaints() == []
    text = window.ask("document.getElementById('compared').textContent")
    assert "signal to noise, worst output" in text
    assert "within noise" in text
    titles = window.ask(
        "[...document.querySelectorAll('#compared-layers thead th')].map(t => t.textContent)"
    )
    first, second = titles.index("S/N (dB), A"), titles.index("S/N (dB), B")
    pairs = zip(
        column(window, "compared-layers", first),
        column(window, "compared-layers", second),
        strict=True,
    )
    for a, b in pairs:
        assert a == b == "equal" or float(b) - float(a) == pytest.approx(4.0, abs=0.11)
    window.do("document.querySelector('#r1 [data-pick=\"2\"]').click()")
    assert "for 2 regions" in window.ask("document.getElementById('r1-picked').textContent")
    assert window.ask("document.getElementById('r0-picked').textContent") == ""


def test_two_thousand_layers(window: Browser, tmp_path: pathlib.Path) -> None:
    path = page(tmp_path / "large.html", full_document(2000))
    assert path.stat().st_size < MOST_BYTES
    both = page(tmp_path / "both.html", full_document(2000), full_document(2000, shift=1.0))
    assert both.stat().st_size < MOST_BYTES
    window.open(path)
    assert window.overflow() <= 0
    assert len(column(window, "r0-layers", 0)) == 2000
    window.do("document.querySelectorAll('#r0-layers thead button')[1].click()")
    assert column(window, "r0-layers", 1)[:3] == ["2000", "1999", "1998"]
