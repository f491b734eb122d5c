import json
import os
import pathlib

import pytest

from onnxopt.errors import ModelError
from onnxopt.report.formats import NO_SIGNAL
from onnxopt.report.json_file import check_writable, json_text, write_json


def test_what_json_does_not_have_becomes_null() -> None:
    document = {"a": float("inf"), "b": [float("nan"), 1.5], "c": {"d": -float("inf")}}
    assert json.loads(json_text(document)) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def test_decibels_of_no_signal_differ_from_those_of_no_noise() -> None:
    document = {"snr_db": -float("inf"), "sqnr_db": {"y": -float("inf"), "z": float("inf")}}
    assert json.loads(json_text(document)) == {
        "snr_db": NO_SIGNAL,
        "sqnr_db": {"y": NO_SIGNAL, "z": None},
    }


def test_file_has_the_usual_permissions(tmp_path: pathlib.Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    write_json(tmp_path / "report.json", {"a": 1})
    assert (tmp_path / "report.json").stat().st_mode == usual.stat().st_mode


def test_old_report_survives_a_failure(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ModelError, match="No space left"):
        write_json(path, {"a": 1})
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]
    assert path.read_text() == "old"


def test_what_cannot_be_written_is_said_beforehand(tmp_path: pathlib.Path) -> None:
    model = tmp_path / "model.onnx"
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "report.json", "does not exist"),
        (model, "is a model"),
    ):
        with pytest.raises(ModelError, match=words):
            check_writable(path, model, None)
    check_writable(tmp_path / "report.json", model, None)
