"""Models that are stored compactly, and whose parts were tampered with."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from tests.cli.conftest import run
from tests.differential import parse

Array = np.ndarray[Any, Any]

_SHAPE = (64, 96)


def sparse_weights() -> Array:
    rng = np.random.default_rng(0)
    array = rng.standard_normal(_SHAPE).astype(np.float32)
    array[rng.random(_SHAPE) < 0.9] = 0
    return array


def few_numbers() -> Array:
    return (np.arange(64 * 96).reshape(_SHAPE) * 7 % 11 / 3).astype(np.float32)


def scaled_integers() -> Array:
    rng = np.random.default_rng(0)
    scales = (rng.random((64, 1)) + 0.1).astype(np.float32)
    product: Array = rng.integers(-127, 128, _SHAPE).astype(np.float32) * scales
    return product


def coded(folder: pathlib.Path, array: Array, code: str) -> pathlib.Path:
    text = "g (float[n, 64] x) => (float[n, 96] y) { y = MatMul(x, w) }"
    onnx.save(parse(text, {"w": array}), folder / "dense.onnx")
    path = folder / "coded.onnx"
    passes = f"compact-weights{{codes={code}}}"
    result = run("optimize", folder / "dense.onnx", path, "--passes", passes, "--no-speed-guard")
    assert result.exit_code == 0, result.output
    assert not any(each.name == "w" for each in onnx.load(path).graph.initializer)
    return path


def largest(proto: onnx.ModelProto, data_type: int) -> onnx.TensorProto:
    parts = [each for each in proto.graph.initializer if each.data_type == data_type]
    found: onnx.TensorProto = max(parts, key=lambda each: int(np.prod(each.dims)))
    return found


def put(part: onnx.TensorProto, array: Array) -> None:
    part.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), part.name))


def numbers(part: onnx.TensorProto) -> Array:
    return np.array(onnx.numpy_helper.to_array(part))


def _bytes(proto: onnx.ModelProto, change: Callable[[Array], Array]) -> None:
    part = largest(proto, onnx.TensorProto.UINT8)
    put(part, change(numbers(part)))


def _shorter(proto: onnx.ModelProto) -> None:
    _bytes(proto, lambda array: array[..., :-9])


def _longer(proto: onnx.ModelProto) -> None:
    _bytes(proto, lambda array: np.concatenate([array, array], axis=-1))


def _all_set(proto: onnx.ModelProto) -> None:
    _bytes(proto, lambda array: np.full_like(array, 255))


def _fewer_numbers(proto: onnx.ModelProto) -> None:
    part = largest(proto, onnx.TensorProto.FLOAT)
    put(part, numbers(part)[:-5])


def _other_shape(proto: onnx.ModelProto) -> None:
    for part in proto.graph.initializer:
        if part.data_type == onnx.TensorProto.INT64 and list(numbers(part)) == list(_SHAPE):
            put(part, np.array([64, 97]))


def _scales_of_other_channels(proto: onnx.ModelProto) -> None:
    part = largest(proto, onnx.TensorProto.FLOAT)
    put(part, numbers(part)[:-1])


@pytest.mark.parametrize(
    ("array", "code", "tamper"),
    [
        *((sparse_weights(), "bitmask", tamper) for tamper in (_shorter, _longer, _all_set)),
        (sparse_weights(), "bitmask", _fewer_numbers),
        (sparse_weights(), "bitmask", _other_shape),
        *((sparse_weights(), "gaps", tamper) for tamper in (_shorter, _longer, _all_set)),
        (sparse_weights(), "gaps", _fewer_numbers),
        *((sparse_weights(), "elias-fano", tamper) for tamper in (_shorter, _longer, _all_set)),
        (few_numbers(), "palette", _fewer_numbers),
        (few_numbers(), "palette", _all_set),
        (few_numbers(), "palette", _shorter),
        (scaled_integers(), "scaled", _scales_of_other_channels),
    ],
    ids=lambda each: each.__name__ if callable(each) else each if isinstance(each, str) else "",
)
def test_tampered_codes_are_an_error_and_nothing_is_lost(
    array: Array,
    code: str,
    tamper: Callable[[onnx.ModelProto], None],
    tmp_path: pathlib.Path,
    fails: Callable[..., str],
) -> None:
    path, out = coded(tmp_path, array, code), tmp_path / "out.onnx"
    proto = onnx.load(path)
    tamper(proto)
    onnx.save(proto, path)
    before = path.read_bytes()
    fails("decode", path, out, says=("'w' cannot be decoded", "decoder"))
    said = fails("optimize", path, out, says=("ONNX Runtime",))
    assert "the model is damaged" in said or "refuses" in said
    assert not out.exists()
    facts = json.loads(run("inspect", path, "--json").stdout)
    assert any("'w' cannot be written out" in note for note in facts["notes"])
    assert path.read_bytes() == before
