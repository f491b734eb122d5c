import json
import pathlib

import numpy as np
import onnx
import pytest

from onnxopt.model import zipped_bytes
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


def coded_model(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """A model with a sparse weight, as it is and stored compactly."""
    w = np.zeros((64, 64), np.float32)
    w[::4, ::5] = np.random.default_rng(0).standard_normal((16, 13))
    dense, coded = folder / "dense.onnx", folder / "coded.onnx"
    onnx.save(parse("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }", {"w": w}), dense)
    result = run("optimize", dense, coded, "--passes", "compact-weights", "--no-speed-guard")
    assert result.exit_code == 0, result.output
    return dense, coded


def test_weights_in_a_shorter_form_are_shown_as_the_numbers_they_are(
    tmp_path: pathlib.Path,
) -> None:
    dense, coded = coded_model(tmp_path)
    before, after = (json.loads(run("inspect", each, "--json").stdout) for each in (dense, coded))
    for key in ("parameters", "zeros", "macs", "operators", "tensors", "precision", "layers"):
        assert after[key] == before[key]
    assert before["storage"]["coded"] == 0
    assert before["storage"]["bytes"] == before["storage"]["dense_bytes"] == dense.stat().st_size
    storage = after["storage"]
    assert (storage["coded"], storage["bytes"]) == (1, coded.stat().st_size)
    assert storage["dense_bytes"] == pytest.approx(dense.stat().st_size, abs=16)
    assert storage["measured"] is storage["zip_bytes"] is None
    text = run("inspect", coded).stdout
    assert "1 weight in a shorter form" in text
    assert "times as large" in text


def test_sparse_initializers_are_counted_as_a_shorter_form(tmp_path: pathlib.Path) -> None:
    dense, _ = coded_model(tmp_path)
    sparse = tmp_path / "sparse.onnx"
    text = "compact-weights{codes=sparse-initializer}"
    result = run("optimize", dense, sparse, "--passes", text, "--no-speed-guard")
    assert result.exit_code == 0, result.output
    storage = json.loads(run("inspect", sparse, "--json").stdout)["storage"]
    assert storage["coded"] == 1
    assert storage["bytes"] == sparse.stat().st_size
    assert storage["dense_bytes"] == pytest.approx(dense.stat().st_size, abs=16)


def test_measure_tells_what_users_decide_by(tmp_path: pathlib.Path) -> None:
    dense, coded = coded_model(tmp_path)
    storage = json.loads(run("inspect", coded, "--measure", "--json").stdout)["storage"]
    assert storage["zip_bytes"] == zipped_bytes(coded) < coded.stat().st_size
    assert storage["dense_zip_bytes"] == pytest.approx(zipped_bytes(dense), abs=16)
    rows = storage["measured"]["rows"]
    assert [row["bytes"] for row in rows] == [storage["bytes"], storage["dense_bytes"]]
    for row in rows:
        assert row["peak_memory_bytes"] >= row["load_memory_bytes"] > 0
        assert row["load_seconds"] > 0 < row["latency"]["median"]
    (row,) = json.loads(run("inspect", dense, "--measure", "--json").stdout)["storage"]["measured"][
        "rows"
    ]
    assert row["bytes"] == dense.stat().st_size
    text = run("inspect", coded, "--measure").stdout
    for words in ("zipped", "memory", "latency", "dense-coded.onnx"):
        assert words in text


def test_what_cannot_be_written_out_is_said(tmp_path: pathlib.Path) -> None:
    _, coded = coded_model(tmp_path)
    proto = onnx.load(coded)
    for part in proto.graph.initializer:
        if part.data_type == onnx.TensorProto.UINT8:
            wrong = np.full(part.dims, 255, np.uint8)
            part.CopyFrom(onnx.numpy_helper.from_array(wrong, part.name))
    onnx.save(proto, coded)
    result = run("inspect", coded, "--json")
    assert result.exit_code == 0
    assert "'w' cannot be written out" in json.loads(result.stdout)["notes"][-1]


def test_sizes_that_are_named_by_formulas_are_unknown(tmp_path: pathlib.Path) -> None:
    """Exporters that trace sizes name them so."""
    text = "g (float[1, h] x, float[h, 1] w) => (float[1, 1] y) { y = MatMul(x, w) }"
    proto = parse(text)
    for port in proto.graph.input:
        for dim in port.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = "(floor(height/2 - 1/2) + 1)*2"
    onnx.save(proto, tmp_path / "model.onnx")
    result = run("inspect", tmp_path / "model.onnx")
    assert result.exit_code == 0, result.output
    assert "1 node of unknown shape" in " ".join(result.stdout.split())
