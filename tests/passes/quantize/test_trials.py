"""The time of each kernel is laid to the product that it computes, whatever it is called."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxopt.passes.infer_shapes import InferShapes
from onnxopt.passes.quantize.numbers import Numbers
from onnxopt.passes.quantize.plan import Mode
from onnxopt.passes.quantize.trials import Trials, Workshop, name_nodes
from onnxopt.passes.quantize.weights import quantize_weights

from onnxopt.model import from_proto
from onnxopt.regions import Product, products
from onnxopt.runtime.trial import try_model
from onnxopt.runtime.worker import shared_worker
from tests.differential import parse
from tests.passes.quantize.lowered import ranges_of

RNG = np.random.default_rng(1)

_GEMM = """
g (float[N, 16] x) => (float[N, 8] y) {
    [head] h = Gemm(x, w, b)
    r = Relu(h)
    [tail] y = Gemm(r, v)
}
"""
_MATMUL = """
g (float[N, 16] x) => (float[N, 8] y) {
    [head] m = MatMul(x, w)
    h = Add(m, b)
    r = Relu(h)
    [tail] y = MatMul(r, v)
}
"""
_CONV = """
g (float[N, 16, 6, 6] x) => (float[N, 8, 4, 4] y) {
    [head] h = Conv(x, k, b)
    r = Relu(h)
    [tail] y = Conv(r, l)
}
"""


def _constants(body: str) -> dict[str, np.ndarray]:
    shapes = {"w": (16, 32), "b": (32,), "v": (32, 8), "k": (32, 16, 3, 3), "l": (8, 32, 1, 1)}
    return {
        name: RNG.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
        if f", {name}" in body
    }


@pytest.mark.parametrize("treated", [[], ["head"], ["head", "tail"]])
@pytest.mark.parametrize("body", [_GEMM, _MATMUL, _CONV])
@pytest.mark.parametrize("named", [True, False])
def test_kernels_belong_to_products(body: str, treated: Sequence[str], named: bool) -> None:
    proto = parse(body, _constants(body))
    keys = {node.name: node.output[0] for node in proto.graph.node if node.name}
    if not named:
        for node in proto.graph.node:
            node.name = ""
    feed = {"x": RNG.standard_normal((1, 16, 6, 6) if body == _CONV else (3, 16))}
    feed = {"x": feed["x"].astype(np.float32)}
    with Workshop(_typed(proto)) as workshop:
        model = _typed(proto)
        found = [each for each in products(model.graph) if isinstance(each, Product)]
        numbers = Numbers(
            False,
            ranges_of(proto, feed),
            {p.key: quantize_weights(p.weights, p.channel_axis, None) for p in found},
        )
        modes = [Mode.STATIC, Mode.STATIC_INPUT]
        trials = Trials(workshop, model, found, numbers, modes, {})
        choices = {keys[name]: trials.treatments(keys[name])[0] for name in treated}
        with trials.build(choices) as path:
            kernels = try_model(shared_worker(), path, [feed]).kernels
    owners = {trials.owner(kernel.node) for kernel in kernels if _computes(kernel.op_type)}
    assert owners == set(keys.values())
    assert not trials.misplaced(kernels, choices)
    in_float = {
        trials.owner(kernel.node)
        for kernel in kernels
        if _computes(kernel.op_type)
        and "Integer" not in kernel.op_type
        and "Q" not in kernel.op_type
    }
    assert in_float == {key for name, key in keys.items() if name not in treated}
    # Whatever runs in float is misplaced if it was to be in 8 bits.
    everything = {key: trials.treatments(key)[0] for key in keys.values()}
    assert set(trials.misplaced(kernels, everything)) == in_float


def _typed(proto: onnx.ModelProto) -> ir.Model:
    model = from_proto(proto)
    InferShapes()(model)
    name_nodes(model)
    return model


def _computes(op_type: str) -> bool:
    return any(word in op_type for word in ("Conv", "Gemm", "MatMul"))
