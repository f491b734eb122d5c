import json
import pathlib

import onnx
import pytest

from onnxopt.pass_manager import PassManager, parse_pipeline
from tests.cli.conftest import files, run
from tests.differential import parse


@pytest.fixture
def chain(tmp_path: pathlib.Path) -> pathlib.Path:
    """Seven Relu of which only the fifth is not harmless to negate."""
    body = " ".join(f"v{i + 1} = Relu(v{i})" for i in range(7))
    proto = parse(f"g (float[n] v0) => (float[n] y) {{ {body} b = Identity(v7) y = Neg(b) }}")
    for index, node in enumerate(proto.graph.node):
        node.name = f"fatal{index}" if index == 4 else f"harmless{index}"
    # What comes before is made positive, so that Identity does no harm and Neg does.
    proto.graph.node[0].op_type = "Exp"
    path = tmp_path / "chain.onnx"
    onnx.save(proto, path)
    return path


def test_nothing_broken_exits_0_and_says_so(model: pathlib.Path) -> None:
    result = run("bisect", model, "--passes", "eliminate-identities")
    assert result.exit_code == 0, result.output
    assert "Nothing breaks" in result.stdout


def test_pass_and_rewrite_are_found(
    chain: pathlib.Path, tmp_path: pathlib.Path, wrong_pass: str
) -> None:
    before = files(tmp_path)
    passes = f"eliminate-identities,{wrong_pass},eliminate-no-ops"
    result = run("bisect", chain, "--passes", passes, "--json")
    assert result.exit_code == 1, result.output
    culprit = json.loads(result.stdout)["culprit"]
    assert culprit["pass_name"] == wrong_pass
    assert culprit["run"] == 2
    assert (culprit["rewrite"], culprit["rewrites"]) == (4, 6)
    assert culprit["rule"] == "negate"
    assert any("Relu 'fatal4'" in node for node in culprit["removed"])
    assert [node for node in culprit["added"] if node.startswith("Neg")], culprit
    assert files(tmp_path) == before


def test_reproducer_holds_the_models_around_the_fault(
    chain: pathlib.Path, tmp_path: pathlib.Path, wrong_pass: str
) -> None:
    folder = tmp_path / "broken"
    result = run("bisect", chain, "--passes", wrong_pass, "--reproducer", folder)
    assert result.exit_code == 1
    assert "rewrite" in result.stdout
    assert "onnxopt check" in " ".join(result.stdout.split())
    assert sorted(files(folder)) == ["after.onnx", "before.onnx"]
    check = run("check", folder / "before.onnx", folder / "after.onnx", "--json")
    assert check.exit_code == 1
    assert json.loads(check.stdout)["layer"]["value"] == "v5"


def test_pass_that_raises_is_found(
    model: pathlib.Path, tmp_path: pathlib.Path, wrong_pass: str
) -> None:
    passes = "eliminate-identities,raise-on-relu"
    folder = tmp_path / "broken"
    result = run("bisect", model, "--passes", passes, "--reproducer", folder, "--json")
    assert result.exit_code == 1, result.output
    culprit = json.loads(result.stdout)["culprit"]
    assert culprit["pass_name"] == "raise-on-relu"
    assert "met a Relu" in culprit["problem"]
    assert culprit["rewrite"] is None
    assert list(files(folder)) == ["before.onnx"]


def test_limit_of_rewrites_is_heeded(chain: pathlib.Path, wrong_pass: str) -> None:
    from onnxopt.model import load

    for limit in range(4):
        [made] = parse_pipeline(wrong_pass)
        made.max_rewrites = limit
        [report] = PassManager([made], rounds=1).run(load(chain))
        assert report.outcome.rewritten.total() == limit
