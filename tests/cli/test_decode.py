import json
import pathlib
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from tests.cli.conftest import files, run
from tests.differential import parse

TEXT = "g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }"


@pytest.fixture
def dense(tmp_path: pathlib.Path) -> pathlib.Path:
    array = np.zeros((64, 64), np.float32)
    array[::3, ::5] = np.arange(22 * 13).reshape(22, 13)
    path = tmp_path / "dense.onnx"
    onnx.save(parse(TEXT, {"w": array}), path)
    return path


def test_decode_undoes_compact(dense: pathlib.Path, tmp_path: pathlib.Path) -> None:
    compact, back = tmp_path / "compact.onnx", tmp_path / "back.onnx"
    result = run("optimize", dense, compact, "--passes", "compact", "--no-speed-guard")
    assert result.exit_code == 0, result.output
    assert compact.stat().st_size < dense.stat().st_size / 5
    result = run("decode", compact, back)
    assert result.exit_code == 0, result.output
    assert "1 tensors decoded" in result.stdout
    first, second = onnx.load(dense), onnx.load(back)
    assert [node.op_type for node in second.graph.node] == ["MatMul"]
    assert second.graph.initializer[0].name == "w"
    assert second.graph.initializer[0].raw_data == first.graph.initializer[0].raw_data
    document = json.loads(run("decode", compact, tmp_path / "other.onnx", "--json").stdout)
    assert document["decoded"] == 1
    assert document["bytes_before"] == compact.stat().st_size
    assert document["bytes_after"] == back.stat().st_size


def test_dense_model_is_copied(dense: pathlib.Path, tmp_path: pathlib.Path) -> None:
    result = run("decode", dense, tmp_path / "same.onnx", "--quiet")
    assert result.exit_code == 0
    assert result.output == ""
    assert (tmp_path / "same.onnx").stat().st_size <= dense.stat().st_size


def test_input_is_never_written_to(dense: pathlib.Path, fails: Callable[..., str]) -> None:
    before = files(dense.parent)
    fails("decode", dense, dense, says=("is the input itself",))
    assert files(dense.parent) == before


def test_tampered_model_is_an_error(
    dense: pathlib.Path, tmp_path: pathlib.Path, fails: Callable[..., str]
) -> None:
    compact = tmp_path / "compact.onnx"
    passes = "compact-weights{codes=gaps}"
    assert run("optimize", dense, compact, "--passes", passes, "--no-speed-guard").exit_code == 0
    model = onnx.load(compact)
    part = next(
        each for each in model.graph.initializer if each.data_type == onnx.TensorProto.UINT8
    )
    part.CopyFrom(onnx.numpy_helper.from_array(np.full(part.dims, 255, np.uint8), part.name))
    onnx.save(model, compact)
    fails("decode", compact, tmp_path / "back.onnx", says=("'w'", "cannot be decoded"))


def test_optimize_keeps_compact_models_so(dense: pathlib.Path, tmp_path: pathlib.Path) -> None:
    compact, again = tmp_path / "compact.onnx", tmp_path / "again.onnx"
    run("optimize", dense, compact, "--passes", "compact", "--no-speed-guard")
    result = run("optimize", compact, again, "--no-speed-guard", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["undone"] == []
    assert again.stat().st_size <= compact.stat().st_size
    assert len(onnx.load(again).graph.node) == len(onnx.load(compact).graph.node) > 1
