"""Whether the runtime's products of 8-bit numbers overflow on this processor: asked, not looked up.

Kernels are chosen by what the processor says of itself, which is not what /proc/cpuinfo says in
emulators and some containers, and there is none outside Linux. One product with the largest numbers
tells: where two products are added in 16 bits (``vpmaddubsw``), 2 * 255 * 127 becomes 32767.
"""

from __future__ import annotations

import functools

import numpy as np

__all__ = ["sums_saturate"]

_INPUTS = 64  # several of the registers that kernels fill
_GREATEST = 255, 127


@functools.cache
def sums_saturate() -> bool:
    """Whether uint8 times int8 is wrong for the largest numbers.

    The model is one node of our own, so that it needs no child process to be safe in.
    """
    import onnx
    import onnxruntime as ort

    activations = np.full((4, _INPUTS), _GREATEST[0], np.uint8)
    weights = np.full((_INPUTS, 16), _GREATEST[1], np.int8)
    model = onnx.parser.parse_model(
        f'<ir_version: 7, opset_import: ["": 13]>'
        f" g (uint8[4, {_INPUTS}] x) => (int32[4, 16] y) {{ y = MatMulInteger(x, w) }}"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (sums,) = session.run(None, {"x": activations})
    exact = activations.astype(np.int32) @ weights.astype(np.int32)
    return not np.array_equal(sums, exact)
