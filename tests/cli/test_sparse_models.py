"""Models with ONNX's own sparse initializers go through every command."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxopt.model import load
from tests.cli.conftest import run
from tests.differential import run as run_model

Array = np.ndarray[Any, Any]

MATMUL = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])


def sparse_model(array: Array, *, coordinates: bool = False, cast: bool = False) -> onnx.ModelProto:
    """A product with a sparse weight, or, with ``cast``, the weight itself as float."""
    flat = array.reshape(-1)
    where = np.flatnonzero(flat.astype(np.float64)).astype(np.int64)
    values = onnx.numpy_helper.from_array(flat[where], "w")
    indices = np.stack(np.unravel_index(where, array.shape), 1) if coordinates else where
    sparse = onnx.helper.make_sparse_tensor(
        values, onnx.numpy_helper.from_array(indices, "w_where"), array.shape
    )
    make, float_ = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    nodes = [MATMUL]
    if cast:
        nodes = [
            onnx.helper.make_node("Cast", ["w"], ["v"], to=float_),
            onnx.helper.make_node("MatMul", ["x", "v"], ["y"]),
        ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [make("x", float_, ["n", array.shape[0]])],
        [make("y", float_, ["n", array.shape[1]])],
        sparse_initializer=[sparse],
    )
    opset = onnx.helper.make_opsetid("", 19)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)


def weights(dtype: Any = np.float32) -> Array:
    array = np.zeros((64, 32))
    array[::3, ::5] = np.arange(1, 22 * 7 + 1).reshape(22, 7) % 60 + 1
    return array.astype(dtype)


@pytest.fixture(params=[False, True], ids=["linear", "coordinates"])
def source(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "sparse.onnx"
    onnx.save(sparse_model(weights(), coordinates=request.param), path)
    return path


FEED = {"x": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)}


def test_optimize_keeps_the_answers_and_the_file_small(source: pathlib.Path) -> None:
    target = source.with_name("out.onnx")
    for passes in ("exact", "compact"):
        result = run("optimize", source, target, "--passes", passes, "--no-speed-guard")
        assert result.exit_code == 0, result.output
        expected = FEED["x"] @ weights()
        (found,) = run_model(onnx.load(target), FEED)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        assert target.stat().st_size <= source.stat().st_size


def test_inspect_check_bench_decode_and_bisect(source: pathlib.Path) -> None:
    facts = json.loads(run("inspect", source, "--json").stdout)
    assert facts["parameters"] == 64 * 32
    assert facts["zeros"] == pytest.approx(1 - 22 * 7 / (64 * 32))
    dense = source.with_name("dense.onnx")
    assert run("decode", source, dense).exit_code == 0
    assert not onnx.load(dense).graph.sparse_initializer
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(onnx.load(dense).graph.initializer[0]), weights()
    )
    assert run("check", source, dense).exit_code == 0
    assert run("bench", source, dense, "--seconds", "0.05").exit_code == 0
    assert run("bisect", source).exit_code == 0


@pytest.mark.parametrize(
    "dtype",
    [
        *(np.float32, np.float64, np.float16, ml_dtypes.bfloat16),
        *(ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz),
        *(ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz, np.bool_),
        *(np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
    ],
    ids=lambda dtype: np.dtype(dtype).name,
)
def test_every_type_that_the_runtime_loads(dtype: Any, tmp_path: pathlib.Path) -> None:
    path, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    proto = sparse_model(weights(dtype), cast=True)
    onnx.save(proto, path)
    tensor = load(path).graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), weights(dtype))
    result = run("optimize", path, target, "--passes", "fold-constants", "--no-speed-guard")
    assert result.exit_code == 0, result.output
    expected = FEED["x"] @ weights(dtype).astype(np.float32)
    np.testing.assert_allclose(run_model(onnx.load(target), FEED)[0], expected, rtol=1e-4)


def _shuffle(sparse: onnx.SparseTensorProto) -> None:
    _set_indices(sparse, _indices(sparse)[::-1])


def _double(sparse: onnx.SparseTensorProto) -> None:
    indices = _indices(sparse)
    indices[1] = indices[0]
    _set_indices(sparse, indices)


def _outside(sparse: onnx.SparseTensorProto) -> None:
    indices = _indices(sparse)
    indices[-1] = 64 * 32
    _set_indices(sparse, indices)


def _negative(sparse: onnx.SparseTensorProto) -> None:
    indices = _indices(sparse)
    indices[0] = -1
    _set_indices(sparse, indices)


def _fewer(sparse: onnx.SparseTensorProto) -> None:
    _set_indices(sparse, _indices(sparse)[:-1])


def _floats(sparse: onnx.SparseTensorProto) -> None:
    _set_indices(sparse, _indices(sparse).astype(np.float32))


def _matrix(sparse: onnx.SparseTensorProto) -> None:
    sparse.values.dims[:] = [2, sparse.values.dims[0] // 2]


def _cut(sparse: onnx.SparseTensorProto) -> None:
    sparse.values.raw_data = sparse.values.raw_data[:-2]


def _indices(sparse: onnx.SparseTensorProto) -> Array:
    return np.array(onnx.numpy_helper.to_array(sparse.indices))


def _set_indices(sparse: onnx.SparseTensorProto, indices: Array) -> None:
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(indices, "w_where"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_shuffle, "ascending order"),
        (_double, "ascending order"),
        (_outside, "outside [64, 32]"),
        (_negative, "outside [64, 32]"),
        (_fewer, "indices of shape [153]"),
        (_floats, "not integers"),
        (_matrix, "not a vector"),
        (_cut, "cannot be read"),
    ],
)
def test_malformed_ones_are_an_error(
    damage: Callable[[onnx.SparseTensorProto], None],
    reason: str,
    tmp_path: pathlib.Path,
    fails: Callable[..., str],
) -> None:
    path = tmp_path / "bad.onnx"
    proto = sparse_model(weights())
    damage(proto.graph.sparse_initializer[0])
    path.write_bytes(proto.SerializeToString())
    fails("optimize", path, tmp_path / "out.onnx", says=("sparse initializer 'w'", reason))
    fails("inspect", path, says=("sparse initializer 'w'", reason))
    assert not (tmp_path / "out.onnx").exists()
