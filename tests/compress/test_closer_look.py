"""Layers of what came of a compression."""

import pathlib
from typing import Any

import numpy as np
import onnx

from onnxopt.compress.closer_look import layers_beside
from onnxopt.findings import Findings
from onnxopt.runtime.worker import shared_worker
from tests.differential import parse


def _net(*, quantized: bool, scale: float = 1.0) -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    read = (
        """
        i = QuantizeLinear(x, s, z)  d = DequantizeLinear(i, s, z)
        """
        if quantized
        else "d = Identity(x)"
    )
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 8] x) => (float[n, 4] y) {{
            {read}
            [first] h = MatMul(d, w1)
            m = Mul(h, factor)
            r = Relu(m)
            [last] y = MatMul(r, w2)
        }}"""
    arrays: dict[str, Any] = {
        "w1": rng.standard_normal((8, 8)).astype(np.float32),
        "w2": rng.standard_normal((8, 4)).astype(np.float32),
        "factor": np.float32(scale),
    }
    if quantized:
        arrays |= {"s": np.float32(0.2), "z": np.uint8(128)}
    return parse(text, arrays)


def _layers(folder: pathlib.Path, first: onnx.ModelProto, second: onnx.ModelProto) -> Findings:
    paths = folder / "first.onnx", folder / "second.onnx"
    for path, model in zip(paths, (first, second), strict=True):
        onnx.save(model, path)
    feeds = [{"x": np.random.default_rng(i).standard_normal((4, 8), np.float32)} for i in range(20)]
    found = layers_beside(
        paths[0],
        paths[0],
        paths[1],
        feeds,
        feeds[0],
        worker=shared_worker("tests"),
        threads=1,
        seconds=0.01,
        on_step=lambda step: None,
    )
    return Findings(layers=found)


def test_noise_and_time_of_a_quantized_model(tmp_path: pathlib.Path) -> None:
    found = _layers(tmp_path, _net(quantized=False), _net(quantized=True)).to_dict()["layers"]
    first = next(each for each in found if each["name"] == "first")
    assert 15 < first["sqnr_db"] < 40
    assert first["seconds"] > 0
    assert first["seconds_before"] > 0


def test_of_a_float_model_no_noise_is_told(tmp_path: pathlib.Path) -> None:
    found = _layers(tmp_path, _net(quantized=False), _net(quantized=False, scale=2.0))
    assert found.layers
    assert all(each.sqnr_db is None for each in found.layers)
