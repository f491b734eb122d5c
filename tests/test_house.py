"""The house is as docs/design.md draws it: the same rooms, and imports that point down only."""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_ENGINE = _ROOT / "onnxopt"
#: Imports for the type checker only are no arrows: nothing is loaded.
_ONLY_FOR_TYPES = "TYPE_CHECKING"


def _drawn() -> list[str]:
    """The rooms, from the top floor down."""
    text = (_ROOT / "docs" / "design.md").read_text()
    house = text.partition("onnxopt/ ")[2].partition("passes/ ")[0]
    return re.findall(r"^  (\w+)(?:\.py|/) ", house, re.MULTILINE)


def _built() -> set[str]:
    files = {path.stem for path in _ENGINE.glob("*.py") if not path.stem.startswith("__")}
    return files | {path.parent.name for path in _ENGINE.glob("*/__init__.py")}


def _imports(node: ast.AST) -> Iterator[str]:
    """Modules of the engine that are imported anywhere below a node, functions included."""
    if isinstance(node, ast.If) and _ONLY_FOR_TYPES in ast.unparse(node.test):
        return
    if isinstance(node, ast.ImportFrom) and node.module == "onnxopt":
        yield from (f"onnxopt.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child)


def _rooms_entered(path: pathlib.Path) -> set[str]:
    names = _imports(ast.parse(path.read_text()))
    return {name.split(".")[1] for name in names if name.startswith("onnxopt.")}


def test_every_room_is_drawn() -> None:
    drawn = _drawn()
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == _built()


@pytest.mark.parametrize("room", sorted(_built()))
def test_imports_point_down(room: str) -> None:
    place = {name: number for number, name in enumerate(_drawn())}
    file = _ENGINE / f"{room}.py"
    for path in [file] if file.exists() else sorted((_ENGINE / room).rglob("*.py")):
        for other in _rooms_entered(path) & place.keys() - {room}:
            assert place[room] < place[other], f"{path.name} of {room} imports {other}, above it"


def test_passes_stand_on_the_lower_floors() -> None:
    drawn = _drawn()
    above = set(drawn[: drawn.index("workbench")]) - {"search"}
    for path in sorted((_ROOT / "passes").rglob("*.py")):
        assert not _rooms_entered(path) & above, path
