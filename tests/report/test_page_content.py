"""What is on a page, looked at as text."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from typing import Any

import pytest

from onnxopt.errors import ModelError, OptionError
from onnxopt.report.json_file import json_text
from onnxopt.report.page import page_from_files
from onnxopt.report.page.layer_charts import fewer_bins
from onnxopt.report.page.render import render_page
from onnxopt.report.page.report_view import ReportView
from onnxopt.report.page.views import view
from tests.report.examples import full_document


def read_back(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json_text(document))
    return found


def shown(**changes: Any) -> ReportView:
    return view(read_back({**full_document(), **changes}))


def test_the_first_lines_say_what_was_gained_what_it_cost_and_who_is_to_blame() -> None:
    lead = shown().lead
    assert lead[0] == (
        "Gained: 1.72 times the original's speed, file 52.6 % smaller, peak memory 33.3 % smaller."
    )
    assert lead[1].startswith("Cost: 22 dB signal to noise at the worst output, 97.0% of decisions")
    assert lead[2].startswith("Slowest layer: ")
    assert lead[3].startswith("Noisiest layer: ")
    assert lead[4] == "Undone, because the result was no good: fuse-affine."


def test_noise_is_called_noise() -> None:
    speed = {"median": 1.01, "low": 0.98, "high": 1.05, "is_noise": True}
    page = shown(speed=speed)
    assert page.cards[0] == ("speed", "the same", "1.01x (0.98 to 1.05), within noise", "")
    assert page.lead[0].startswith("Gained: no speed that could be told from noise")


def test_a_slower_result_is_not_called_a_gain_in_green() -> None:
    page = shown(speed={"median": 0.8, "low": 0.78, "high": 0.82, "is_noise": False})
    assert page.cards[0][3] == "bad"


def test_an_unchanged_model() -> None:
    page = shown(changed=False, undone=[])
    assert page.lead[0] == "Nothing was found to improve: the output is the input."
    assert ("answers", "the same", "nothing was changed", "good") in page.cards


def test_outputs_that_were_not_compared_are_not_praised() -> None:
    page = shown(verified=False, fidelity=None, differences=[])
    assert page.cards[-1][1:] == (
        "not compared",
        "verification was off or not possible",
        "bad",
    )


def test_bins_are_put_together_without_losing_a_value() -> None:
    counts, edges = fewer_bins(list(range(1000)), [each / 10 for each in range(1001)])
    assert sum(counts) == sum(range(1000))
    assert len(counts) <= 128
    assert len(edges) == len(counts) + 1
    assert (edges[0], edges[-1]) == (0.0, 100.0)
    assert fewer_bins([1, 2], [0.0, 1.0, 2.0]) == ([1, 2], [0.0, 1.0, 2.0])


def test_the_page_reaches_for_nothing_outside() -> None:
    text = render_page([read_back(full_document())])
    for forbidden in ('src="http', "src='http", "<link", "@import", "url(http"):
        assert forbidden not in text
    assert "default-src 'none'" in text


def test_layers_without_room_are_in_the_json_only() -> None:
    page = view(read_back(full_document(60)), 0, 5000)
    table = page.parts["layers"]["table"]
    assert 5 < len(table.rows) < 60
    assert f"The {len(table.rows)} of 60 layers that take longest" in table.caption


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "is no report"),
        ("{}", "no report of onnxopt"),
        ('{"schema_version": 1, "kind": "passes"}', "no report of onnxopt"),
        ('{"schema_version": 99, "kind": "bench"}', "schema version 99"),
        ('{"schema_version": 1, "kind": "bench"}', "damaged"),
        ('{"schema_version": 1, "kind": "optimize", "source": 3}', "damaged"),
    ],
)
def test_what_is_no_report_is_said(tmp_path: pathlib.Path, text: str, words: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ModelError, match=words):
        page_from_files([tmp_path / "report.json"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_bytes_that_are_no_text_are_no_report(tmp_path: pathlib.Path) -> None:
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="is no report"):
        page_from_files([tmp_path / "report.json"], tmp_path / "page.html")


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "altair" else find(name)
    )
    with pytest.raises(OptionError, match=r"pip install 'onnxopt\[report\]'"):
        page_from_files([tmp_path / "report.json"], tmp_path / "page.html")


def test_more_than_two_do_not_fit(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match="not 3"):
        page_from_files([tmp_path / "a"] * 3, tmp_path / "page.html")
