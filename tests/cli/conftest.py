"""Run the real command line in this process, and look at what it leaves behind."""

from __future__ import annotations

import pathlib
from collections import ChainMap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner, Result

from onnxopt import pass_manager
from onnxopt.cli.main import app
from onnxopt.pass_contract import Outcome, Pass
from onnxopt.rewriting import Context, RewritePass, Rewriter, RewriteRule
from tests.differential import parse

#: A model with work for `eliminate-identities`, and weights.
TEXT = """g (float[n, 4] x) => (float[n, 4] y) {
    a = MatMul(x, w) b = Identity(a) c = Relu(b) d = Identity(c) y = Neg(d)
}"""


def weights(seed: int = 0, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape or (4, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def _usual_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are as wide as they are where nobody says how wide the terminal is."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "model.onnx"
    onnx.save(parse(TEXT, {"w": weights()}), path)
    return path


def run(*arguments: object) -> Result:
    """Run ``onnxopt`` with these arguments."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """All files below a folder, with their contents."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def fails(tmp_path: pathlib.Path) -> Callable[..., str]:
    """Run a command that must fail: one clear sentence, an exit code, and no file touched."""

    def check(*arguments: object, says: tuple[str, ...], code: int = 1) -> str:
        before = files(tmp_path)
        result = run(*arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("onnxopt: error: "), result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        assert "defect of onnxopt" not in result.stderr
        for words in says:
            assert words in result.stderr
        assert files(tmp_path) == before
        return result.stderr

    return check


class NegateSome(RewriteRule[ir.Node]):
    """What `WrongPass` does."""

    name = "negate"
    anchors = ("Relu",)

    def match(self, node: ir.Node, context: Context) -> ir.Node | None:
        return node

    def rewrite(self, match: ir.Node, rewriter: Rewriter) -> None:
        harmless = (match.name or "").startswith("harmless")
        operator = "Identity" if harmless else "Neg"
        rewriter.replace(match.outputs[0], rewriter.op(operator, [match.inputs[0]]))


class WrongPass(RewritePass):
    """Turns Relu into Neg, which is wrong, or into Identity where its name says harmless."""

    name = "negate-relu"

    def rules(self) -> Sequence[RewriteRule[Any]]:
        return [NegateSome()]


class RaisingPass(Pass):
    """Raises when it meets a Relu."""

    name = "raise-on-relu"

    def run(self, model: ir.Model) -> Outcome:
        if any(node.op_type == "Relu" for node in model.graph):
            raise RuntimeError("met a Relu")
        return Outcome(model, False)


@pytest.fixture
def wrong_pass(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a pass that breaks models, registered for the length of a test."""
    passes = pass_manager.available_passes()
    added = {WrongPass.name: WrongPass, RaisingPass.name: RaisingPass}
    found = ChainMap(added, passes)  # type: ignore[arg-type]
    monkeypatch.setattr(pass_manager, "available_passes", lambda: found)
    return WrongPass.name
