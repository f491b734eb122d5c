"""Activations of 16 bits: right in the runtime on a CPU, and truer than 8, though not faster."""

import pathlib
from typing import Any

import numpy as np
import onnx
import pytest
from onnxopt.passes.quantize.parameters import before_affine, for_range

import onnxopt
from onnxopt.model import load
from onnxopt.noise import layer_noise
from onnxopt.report.run import RunReport
from onnxopt.runtime.worker import shared_worker
from onnxopt.settings import Settings
from tests.differential import parse

RNG = np.random.default_rng(0)
TYPES = {"uint16": onnx.TensorProto.UINT16, "int16": onnx.TensorProto.INT16}


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    model = parse(
        """
        <ir_version: 7, opset_import: ["" : 14]>
        g (float[N, 3, 12, 12] x) => (float[N, 24] y) <float six = {6.0}, float zero = {0.0}> {
            a = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)
            c = Clip(a, zero, six)
            h = Conv<pads=[1, 1, 1, 1]>(c, w2)
            s = HardSwish(h)
            t = Add(s, c)
            d = Conv(t, w3)
            p = GlobalAveragePool(d)
            f = Flatten(p)
            m = MatMul(f, w4)
            y = Add(m, b4)
        }
        """,
        {
            "w1": (RNG.standard_normal((48, 3, 3, 3)) * 0.3).astype(np.float32),
            "b1": RNG.standard_normal(48).astype(np.float32),
            "w2": (RNG.standard_normal((48, 48, 3, 3)) * 0.06).astype(np.float32),
            "w3": (RNG.standard_normal((48, 48, 1, 1)) * 0.2).astype(np.float32),
            "w4": RNG.standard_normal((48, 24)).astype(np.float32),
            "b4": RNG.standard_normal(24).astype(np.float32),
        },
    )
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    np.savez(tmp_path / "data.npz", x=RNG.standard_normal((12, 3, 12, 12)).astype(np.float32))
    return path


def _optimize(source: pathlib.Path, path: pathlib.Path, **settings: Any) -> RunReport:
    data = source.with_name("data.npz")
    return onnxopt.optimize(source, path, settings=Settings(data=data, seconds=0.05, **settings))


@pytest.mark.parametrize("kind", list(TYPES))
def test_all_of_a_net_is_quantized_and_truer_than_in_8_bits(
    source: pathlib.Path, kind: str
) -> None:
    wide, narrow = source.with_name("wide.onnx"), source.with_name("narrow.onnx")
    report = _optimize(source, wide, passes=f"quantize{{activations={kind}}}", goal="size")
    assert report.undone == []
    assert report.fidelity is not None
    model = onnx.load(wide)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 21
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert TYPES[kind] in types
    assert onnx.TensorProto.INT8 in types  # the weights
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) >= 4
    eight = _optimize(source, narrow, passes="quantize", goal="size")
    assert eight.fidelity is not None
    assert report.fidelity.sqnr_db > eight.fidelity.sqnr_db - 1  # weights make the most noise
    feeds = [{"x": RNG.standard_normal((2, 3, 12, 12)).astype(np.float32)}]
    noise = {
        path: {
            each.value: each
            for each in layer_noise(load(source), load(path), feeds, worker=shared_worker("tests"))
        }
        for path in (wide, narrow)
    }
    assert noise[wide]["x"].sqnr_db > noise[narrow]["x"].sqnr_db + 15
    assert {each["precision"] for each in report.to_dict()["treatments"]} >= {"int16"}


def test_a_target_of_16_bits_is_not_judged_by_times_here(source: pathlib.Path) -> None:
    path = source.with_name("out.onnx")
    report = _optimize(source, path, passes="exact,quantize", target="npu-u16")
    assert report.undone == []
    assert report.changed
    assert TYPES["uint16"] in {tensor.data_type for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("signed", [False, True])
def test_parameters_of_16_bits_cover_their_range(signed: bool) -> None:
    found = for_range(-1.0, 3.0, signed, bits=16)
    assert found.dtype == (np.int16 if signed else np.uint16)
    assert found.scale == pytest.approx(4 / 65535, rel=1e-4)
    assert found.low == pytest.approx(-1, abs=found.scale)
    assert found.high == pytest.approx(3, abs=found.scale)
    clamped = for_range(0.0, 6.5, signed, (0.0, 6.0), 16)
    assert clamped.high <= 6
    x, y = before_affine(for_range(-0.5, 3.0, signed, bits=16), 2.0, 1.0)
    assert x.bits == y.bits == 16
    assert (x.zero_point - y.zero_point) * y.scale == pytest.approx(-1.0, rel=1e-3) or (
        y.zero_point - x.zero_point
    ) * y.scale == pytest.approx(-1.0, rel=1e-3)
