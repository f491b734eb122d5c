"""Which layer of a quantized model is how noisy, and whether the cause is told."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnxopt.passes.quantize.plan import Mode
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.quantization import quantize_dynamic as ort_quantize_dynamic

from onnxopt.model import from_proto
from onnxopt.noise import Counterpart, LayerNoise, counterparts, layer_noise
from onnxopt.noise.reasons import Evidence, reason
from onnxopt.runtime.worker import shared_worker
from tests.differential import parse
from tests.passes.quantize.lowered import kernels, lowered

RNG = np.random.default_rng(7)
FEEDS = [{"x": RNG.standard_normal((1, 8, 12, 12)).astype(np.float32)} for _ in range(3)]


def _net() -> onnx.ModelProto:
    """Two convolutions with their activations, then a matrix product; the same each time."""
    rng = np.random.default_rng(8)
    return parse(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 8, H, W] x) => (float[N, 4] y) {
            [first] a = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)
            r = Relu(a)
            [second] b = Conv<pads=[1, 1, 1, 1]>(r, w2, b2)
            p = GlobalAveragePool(b)
            f = Flatten(p)
            [last] y = Gemm(f, w3)
        }
        """,
        {
            "w1": (rng.standard_normal((16, 8, 3, 3)) * 0.2).astype(np.float32),
            "b1": (rng.standard_normal(16) * 0.1).astype(np.float32),
            "w2": (rng.standard_normal((16, 16, 3, 3)) * 0.2).astype(np.float32),
            "b2": (rng.standard_normal(16) * 0.1).astype(np.float32),
            "w3": (rng.standard_normal((16, 4)) * 0.2).astype(np.float32),
        },
    )


def _noise(
    first: onnx.ModelProto, second: onnx.ModelProto, feeds: Any = None, **options: Any
) -> dict[str, LayerNoise]:
    found = layer_noise(
        from_proto(first),
        from_proto(second),
        FEEDS if feeds is None else feeds,
        worker=shared_worker("tests"),
        **options,
    )
    return {each.value: each for each in found}


def _initializer(
    model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Change the one initializer whose name begins so."""
    (tensor,) = (each for each in model.graph.initializer if each.name.startswith(name))
    array = onnx.numpy_helper.to_array(tensor)
    changed = np.asarray(change(array), array.dtype)
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))


def _scale_of(model: onnx.ModelProto, value: str) -> tuple[str, ...]:
    """Names of the scale that the numbers of a value are made and read with."""
    (node,) = (
        node
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.output[0].startswith(f"{value}_quantized")
    )
    return tuple(node.input[1:3])


def test_a_good_model_has_little_noise_in_every_layer() -> None:
    model = _net()
    quantized, _ = lowered(model, Mode.STATIC, *FEEDS)
    found = _noise(model, quantized)
    # The first convolution is told by what its Relu gives, which saturation took the place of.
    assert {"x", "r", "b", "p", "y"} <= set(found)
    assert found["r"].layer == "first"
    assert found["b"].layer == "second"
    assert found["y"].layer == "last"
    assert all(each.sqnr_db > 28 for each in found.values())
    assert all(each.whole for each in found.values())
    assert found["r"].low == 0
    assert found["x"].operator == ""


def test_what_is_looked_at_leaves_the_kernels_fused(tmp_path: pathlib.Path) -> None:
    quantized, _ = lowered(_net(), Mode.STATIC, *FEEDS)
    before = kernels(quantized, tmp_path)
    pairs = counterparts(from_proto(_net()), from_proto(quantized))
    names = [pair.fetched for pair in pairs if pair.fetched != "y"]
    quantized.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    after = kernels(quantized, tmp_path)
    assert before["QLinearConv"] == after["QLinearConv"] == 2
    assert before["QGemm"] == after["QGemm"] == 1


def test_a_range_that_cuts_is_called_clipping() -> None:
    model = _net()
    quantized, _ = lowered(model, Mode.STATIC, *FEEDS)
    scale, _ = _scale_of(quantized, "b")
    _initializer(quantized, scale, lambda array: array / 8)
    found = _noise(model, quantized)
    assert found["b"].cause == "clipping"
    assert "range" in found["b"].reason
    assert found["r"].sqnr_db > 28


def test_a_range_that_is_far_too_wide_is_told() -> None:
    model = _net()
    quantized, _ = lowered(model, Mode.STATIC, *FEEDS)
    scale, _ = _scale_of(quantized, "b")
    _initializer(quantized, scale, lambda array: array * 16)
    found = _noise(model, quantized)
    assert found["b"].cause == "range"
    assert "%" in found["b"].reason
    assert found["y"].cause == "upstream"


def test_a_bias_that_is_off_is_told() -> None:
    model = _net()
    quantized, _ = lowered(model, Mode.STATIC, *FEEDS)
    _initializer(quantized, "b_bias_quantized", lambda array: array + 6000)
    found = _noise(model, quantized)
    assert found["b"].cause == "bias"
    assert found["p"].cause in ("upstream", "bias")


def test_coarse_weights_are_told() -> None:
    model = _net()
    quantized, _ = lowered(model, Mode.STATIC, *FEEDS)
    _initializer(quantized, "b_weight_quantized", lambda array: np.rint(array / 50.0) * 50)
    found = _noise(model, quantized)
    assert found["b"].cause == "weights"


def test_noise_is_laid_to_where_it_comes_from() -> None:
    model = _net()
    quantized, _ = lowered(model, Mode.STATIC, *FEEDS)
    _initializer(quantized, "a_weight_quantized", lambda array: np.rint(array / 60.0) * 60)
    found = _noise(model, quantized)
    assert found["r"].cause == "weights"
    assert found["b"].cause == "upstream"
    assert "'first'" in found["b"].reason


def test_ranges_of_each_runs_own_are_looked_at_too() -> None:
    rng = np.random.default_rng(1)
    model = parse(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, M, 24] x) => (float[N, M, 8] y) {
            [one] m = MatMul(x, w1)
            a = Add(m, b1)
            r = Tanh(a)
            [two] n = MatMul(r, w2)
            y = Add(n, b2)
        }
        """,
        {
            "w1": rng.standard_normal((24, 32)).astype(np.float32),
            "b1": rng.standard_normal(32).astype(np.float32),
            "w2": rng.standard_normal((32, 8)).astype(np.float32),
            "b2": rng.standard_normal(8).astype(np.float32),
        },
    )
    feeds = [{"x": rng.standard_normal((2, size, 24)).astype(np.float32)} for size in (3, 5)]
    quantized, _ = lowered(model, Mode.DYNAMIC, *feeds)
    found = _noise(model, quantized, feeds)
    assert found["a"].layer == "one"
    assert found["y"].layer == "two"
    assert not found["y"].whole
    assert 25 < found["y"].sqnr_db < 60


def test_channels_of_another_scale_are_no_noise() -> None:
    model = _net()
    other = onnx.ModelProto()
    other.CopyFrom(model)
    factors = np.linspace(0.2, 5, 16).astype(np.float32)
    _initializer(other, "w1", lambda array: array * factors[:, None, None, None])
    _initializer(other, "b1", lambda array: array * factors)
    _initializer(other, "w2", lambda array: array / factors[None, :, None, None])
    quantized, _ = lowered(other, Mode.STATIC, *FEEDS)
    found = _noise(model, quantized)
    assert found["r"].sqnr_db > 20
    assert "other scales" in found["r"].reason
    assert found["b"].sqnr_db > 20


class _Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = iter(FEEDS)

    def get_next(self) -> Any:
        return next(self._left, None)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_the_runtimes_own_models_are_understood(tmp_path: pathlib.Path, form: QuantFormat) -> None:
    source, target = tmp_path / "net.onnx", tmp_path / "quantized.onnx"
    onnx.save(_net(), source)
    quantize_static(source, target, _Reader(), quant_format=form)
    found = _noise(_net(), onnx.load(target))
    assert {"r", "b", "y"} <= set(found)
    assert all(each.sqnr_db > 20 for each in found.values())


def test_the_runtimes_dynamic_models_are_understood(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(2)
    model = parse(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 24] x) => (float[N, 8] y) { m = MatMul(x, w) y = Tanh(m) }
        """,
        {"w": rng.standard_normal((24, 8)).astype(np.float32)},
    )
    source, target = tmp_path / "net.onnx", tmp_path / "quantized.onnx"
    onnx.save(model, source)
    ort_quantize_dynamic(source, target)
    feeds = [{"x": rng.standard_normal((4, 24)).astype(np.float32)}]
    found = _noise(model, onnx.load(target), feeds)
    assert 20 < found["m"].sqnr_db < 70


def test_memory_does_not_hold_all_layers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxopt.noise.measuring._BATCH_BYTES", 1)
    opened = []
    worker = shared_worker("tests")
    original = worker.open

    def count(*arguments: Any, **options: Any) -> Any:
        info = original(*arguments, **options)
        opened.append(len(info.outputs))
        return info

    monkeypatch.setattr(worker, "open", count)
    quantized, _ = lowered(_net(), Mode.STATIC, *FEEDS)
    found = _noise(_net(), quantized)
    assert len(found) >= 5
    assert max(opened) <= 4  # the first batch; then one at a time, where one is too much already
    assert opened[-1] == 1


def _evidence(value: str) -> Evidence:
    return Evidence(Counterpart(value, value, None, None))


def test_saturation_is_what_only_fast_kernels_do() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 8)).astype(np.float32)
    source, layer, other = (_evidence(name) for name in ("s", "l", "o"))
    source.add(x, x + 1e-3, x + 1.1e-3)
    layer.add(x, x * 0.8, x + 1e-3)  # wrong at the default level only
    other.add(x, x * 0.8, x * 0.8)  # wrong at both
    assert reason(layer, [source], None)[0] == "saturation"
    assert reason(other, [source], None)[0] != "saturation"


def test_steps_that_are_rounded_otherwise_are_no_saturation() -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 8)).astype(np.float32)
    source, layer = _evidence("s"), _evidence("l")
    source.add(x, x * 0.9, x * 0.95)
    layer.add(x, x * 0.9, x * 0.95)
    assert reason(layer, [source], None)[0] == "upstream"


def test_values_that_are_not_finite_are_named() -> None:
    layer = _evidence("l")
    layer.add(np.ones((2, 2), np.float32), np.full((2, 2), np.nan, np.float32))
    assert reason(layer, [], None) == ("mismatch", "is not finite")
