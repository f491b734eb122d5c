"""What is installed is what lies in the repository."""

import pathlib
import tomllib

ROOT = pathlib.Path(__file__).parents[1]


def test_every_package_is_listed() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(document["tool"]["setuptools"]["packages"])
    engine = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "onnxopt").rglob("__init__.py")
    }
    passes = {
        ".".join(("onnxopt", *path.parent.relative_to(ROOT).parts))
        for path in (ROOT / "passes").rglob("__init__.py")
    }
    assert listed == engine | passes


def test_the_engine_imports_no_pass() -> None:
    for path in (ROOT / "onnxopt").rglob("*.py"):
        text = path.read_text()
        assert "onnxopt.passes import" not in text, path
        assert "import onnxopt.passes" not in text, path
