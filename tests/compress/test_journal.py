"""Steps that are done are not done again."""

import pathlib
from typing import Any

import pytest

from onnxopt.compress.journal import Journal
from onnxopt.errors import ModelError


class Work:
    """Counts how often it is done."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: pathlib.Path) -> dict[str, Any]:
        self.count += 1
        path.write_text(f"made {self.count}")
        return {"number": self.count}


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "model.onnx"


def test_a_step_is_taken_once(tmp_path: pathlib.Path, source: pathlib.Path) -> None:
    work = Work()
    kept = Journal(tmp_path / "kept", "mark")
    assert not kept.resumed
    first = kept.step("prune", source, work)
    assert kept.step("prune", source, work) == first
    assert (work.count, first.facts, first.path.read_text()) == (1, {"number": 1}, "made 1")
    other = kept.step("prune more", source, work)
    assert other.path != first.path
    after = kept.step("quantize", first.path, work)
    assert kept.step("quantize", other.path, work).path != after.path
    again = Journal(tmp_path / "kept", "mark")
    assert again.resumed
    assert again.step("quantize", first.path, work) == after
    assert work.count == 4


def test_a_step_that_was_interrupted_is_taken_again(
    tmp_path: pathlib.Path, source: pathlib.Path
) -> None:
    def interrupted(path: pathlib.Path) -> dict[str, Any]:
        path.write_text("half")
        path.with_name("checkpoint").write_text("there")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Journal(tmp_path / "kept", "mark").step("train", source, interrupted)
    work = Work()
    step = Journal(tmp_path / "kept", "mark").step("train", source, work)
    assert step.path.read_text() == "made 1"
    assert step.path.with_name("checkpoint").read_text() == "there"


def test_what_was_measured_stays(tmp_path: pathlib.Path) -> None:
    assert Journal(tmp_path / "kept", "mark").decide("amount", lambda: 0.3) == 0.3
    assert Journal(tmp_path / "kept", "mark").decide("amount", lambda: 0.4) == 0.3
    assert Journal(tmp_path / "kept", "other").decide("amount", lambda: 0.4) == 0.4


def test_a_folder_of_something_else_is_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="is in the way"):
        Journal(tmp_path / "kept", "mark")
    assert (tmp_path / "kept" / "thesis.txt").exists()


def test_what_another_left_is_removed_and_told(
    tmp_path: pathlib.Path, source: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the removing is stopped half way: what is left is not taken for done."""
    step = Journal(tmp_path / "kept", "mark").step("prune", source, Work())

    def killed(path: pathlib.Path) -> None:
        step.path.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        Journal(tmp_path / "kept", "other")
    monkeypatch.undo()
    again = Journal(tmp_path / "kept", "mark")
    assert (again.resumed, again.replaced) == (False, True)
    work = Work()
    assert again.step("prune", source, work).path.exists()
    assert work.count == 1


def test_a_folder_that_was_only_just_made_is_used(tmp_path: pathlib.Path) -> None:
    (tmp_path / "kept").mkdir()
    made = Journal(tmp_path / "kept", "mark")
    assert not made.resumed
    assert not made.replaced


def test_all_is_removed_in_the_end(tmp_path: pathlib.Path, source: pathlib.Path) -> None:
    kept = Journal(tmp_path / "kept", "mark")
    kept.step("prune", source, Work())
    kept.remove()
    assert not (tmp_path / "kept").exists()
