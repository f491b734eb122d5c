import json
import pathlib

import numpy as np
import onnx

from tests.cli.conftest import run, weights
from tests.differential import parse


def test_prints_all_sections(model: pathlib.Path) -> None:
    result = run("inspect", model)
    assert result.exit_code == 0, result.output
    for word in ("opsets", "parameters", "MACs", "precision", "zeros", "Operators", "MatMul"):
        assert word in result.stdout
    assert "16 n" in result.stdout  # 4 x 4 for each of n rows
    assert "[n, 4]" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_json_has_the_same(model: pathlib.Path) -> None:
    document = json.loads(run("inspect", model, "--json").stdout)
    assert (document["macs"], document["macs_number"]) == ("16*n", None)
    assert document["parameters"] == 16
    assert document["inputs"] == [
        {"name": "x", "type": "float", "shape": ["n", 4], "has_default": False}
    ]


def test_shape_makes_a_number_of_the_cost(model: pathlib.Path) -> None:
    document = json.loads(run("inspect", model, "--shape", "x:5,4", "--json").stdout)
    assert document["macs_number"] == 80


def test_shape_that_does_not_fit(model: pathlib.Path) -> None:
    for shape, words in (("x:5,3", "fixed size 4"), ("x:5", "2 dimensions"), ("z:1", "it has x")):
        result = run("inspect", model, "--shape", shape)
        assert result.exit_code == 1
        assert words in result.stderr


def test_names_with_brackets_are_shown_as_they_are(tmp_path: pathlib.Path) -> None:
    proto = parse("g (float[n, 4] x) => (float[n, 4] y) { y = MatMul(x, w) }", {"w": weights()})
    proto.graph.initializer[0].name = "[bold]w[/bold]"
    proto.graph.node[0].input[1] = "[bold]w[/bold]"
    onnx.save(proto, tmp_path / "model.onnx")
    assert "[bold]w[/bold]" in run("inspect", tmp_path / "model.onnx").stdout


def test_zeros_and_precision(tmp_path: pathlib.Path) -> None:
    w = weights()
    w[:2] = 0
    text = "g (float[n, 4] x) => (float[n, 4] y) { a = MatMul(x, w) y = Add(a, b) }"
    onnx.save(parse(text, {"w": w, "b": np.ones(4, np.float32)}), tmp_path / "model.onnx")
    document = json.loads(run("inspect", tmp_path / "model.onnx", "--json").stdout)
    assert document["zeros"] == 8 / 20
    assert document["precision"] == {"float": 80}
    assert [each["name"] for each in document["tensors"]] == ["w", "b"]
