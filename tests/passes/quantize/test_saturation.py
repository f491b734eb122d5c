"""Worst-case activations on every kernel: what the runtime fuses gives what the model says.

Where the processor's kernels saturate (x86 without VNNI), weights that are not pair-safe fail here;
elsewhere nothing can. What pair-safe means is tested on the weights themselves in `test_weights`.
"""

import numpy as np
import onnx
import pytest
from onnxopt.passes.quantize.plan import Mode

from onnxopt.runtime.hardware import probe_target
from tests.differential import parse
from tests.passes.quantize.lowered import lowered, run_at

RNG = np.random.default_rng(0)
#: All weights near the largest, and of one sign in each output: at 8 bits every pair offends.
_SIGNS = np.array([1, -1, 1, -1], np.float32)


def _worst(*shape: int) -> np.ndarray:
    weights = RNG.uniform(0.85, 1.0, shape).astype(np.float32)
    return (weights * _SIGNS.reshape(-1, *[1] * (len(shape) - 1))).astype(np.float32)


def _convolution(channels: int, kernel: int, group: int = 1) -> onnx.ModelProto:
    pads = kernel // 2
    return parse(
        f"g (float[1, {channels}, 9, 9] x) => (float[1, 4, 9, 9] y) {{"
        f" y = Conv<pads=[{pads}, {pads}, {pads}, {pads}], group={group}>(x, w) }}",
        {"w": _worst(4, channels // group, kernel, kernel)},
    )


def _product(op_type: str, inputs: int) -> onnx.ModelProto:
    return parse(
        f"g (float[9, {inputs}] x) => (float[9, 4] y) {{ y = {op_type}(x, w) }}",
        {"w": np.ascontiguousarray(_worst(4, inputs).T)},
    )


_MODELS = {
    "MatMul": _product("MatMul", 64),
    "MatMul, odd": _product("MatMul", 33),
    "Gemm": _product("Gemm", 64),
    "Conv 1x1": _convolution(16, 1),
    "Conv 1x1, odd": _convolution(15, 1),
    "Conv 3x3": _convolution(16, 3),
    "Conv 3x3, odd": _convolution(5, 3),
    "Conv of three channels": _convolution(3, 3),
    "Conv in groups": _convolution(16, 3, group=2),
    "depthwise": _convolution(4, 3, group=4),
}


@pytest.mark.parametrize("name", _MODELS)
def test_pair_safe_weights_do_not_saturate(name: str) -> None:
    model = _MODELS[name]
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    # Zero is the least that the range holds, so that the largest number is 255.
    feed = {"x": np.full(shape, 2.0, np.float32)}
    feed["x"].reshape(-1)[::7] = RNG.uniform(0, 2, len(feed["x"].reshape(-1)[::7]))
    mode = Mode.STATIC if name != "MatMul, odd" else Mode.STATIC_INPUT
    quantized, _ = lowered(model, mode, feed, pair_limit=128)
    plain, fused = run_at(quantized, feed, "disabled")[0], run_at(quantized, feed)[0]
    step = float(np.abs(plain).max()) / 127  # of the output's 8-bit numbers, at least
    np.testing.assert_allclose(fused, plain, atol=1.01 * step)


def test_this_machine_s_target_does_not_saturate_either() -> None:
    model = _MODELS["MatMul"]
    feed = {"x": np.full((9, 64), 2.0, np.float32)}
    quantized, _ = lowered(model, Mode.DYNAMIC, feed, pair_limit=probe_target().pair_limit)
    plain, fused = run_at(quantized, feed, "disabled")[0], run_at(quantized, feed)[0]
    np.testing.assert_allclose(fused, plain, rtol=1e-4)
