"""Even channels as a choice of the search: taken where they help, and paid for where they cost."""

from __future__ import annotations

import pathlib
from collections import Counter

import numpy as np
import onnx
import pytest
from onnxopt.passes.infer_shapes import InferShapes
from onnxopt.passes.quantize.lowering import lower
from onnxopt.passes.quantize.numbers import Divided, Numbers
from onnxopt.passes.quantize.plan import Mode, Plan, treatment
from onnxopt.passes.quantize.readings import Reading
from onnxopt.passes.quantize.recovery import recovered
from onnxopt.passes.quantize.weights import quantize_weights

import onnxopt
from onnxopt.accuracy import Budget
from onnxopt.model import from_proto, to_proto
from onnxopt.regions import Product, products
from onnxopt.report.run import RunReport
from onnxopt.runtime.hardware import resolve_target
from tests.differential import parse, run
from tests.passes.quantize.lowered import decibels, ranges_of, run_at

Array = np.ndarray
RNG = np.random.default_rng(3)
#: Two channels of 16 are far larger than the others.
_SPREAD = np.where(np.arange(16) % 8 == 3, 60.0, 1.0).astype(np.float32)


def _array(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


_MATMUL = "y = MatMul(x, w)"
_BIASED = "m = MatMul(x, w)\ny = Add(m, b)"
_GEMM = "y = Gemm<transB=1>(x, w, b)"
_CONV = "y = Conv<pads=[1, 1, 1, 1], group=2>(x, w, b)"


def _reader(body: str) -> tuple[onnx.ModelProto, dict[str, Array], Array]:
    """A product, its input, and the factors of the input's channels."""
    if body == _CONV:
        weights, shape, kind = (
            _array(32, 8, 3, 3) / _SPREAD[:8, None, None],
            "float[N, 16, H, W]",
            "float[N, 32, H, W]",
        )
        feed, spread = _array(2, 16, 9, 7), _SPREAD.reshape(1, 16, 1, 1)
    else:
        rank = "" if body == _GEMM else "S, "
        # Large channels do not count for more than small ones.
        weights = _array(32, 16) / _SPREAD if body == _GEMM else _array(16, 32) / _SPREAD[:, None]
        shape, kind = f"float[N, {rank}16]", f"float[N, {rank}32]"
        feed, spread = _array(*([40, 16] if body == _GEMM else [2, 20, 16])), _SPREAD
    constants = {"w": weights, "b": _array(32)}
    used = {name: array for name, array in constants.items() if f", {name}" in body}
    model = parse(f"g ({shape} x) => ({kind} y) {{ {body} }}", used)
    return model, {"x": feed * spread}, spread.astype(np.float64).reshape(-1)


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize(
    ("body", "mode"),
    [
        (_MATMUL, Mode.STATIC),
        (_MATMUL, Mode.STATIC_INPUT),
        (_MATMUL, Mode.DYNAMIC),
        (_BIASED, Mode.STATIC_INPUT),
        (_BIASED, Mode.DYNAMIC),
        (_GEMM, Mode.STATIC),
        (_GEMM, Mode.STATIC_INPUT),
        (_GEMM, Mode.DYNAMIC),
        (_CONV, Mode.STATIC),
    ],
)
def test_a_divided_input_is_made_up_for_by_the_weights(
    body: str, mode: Mode, smoothed: bool
) -> None:
    model, feed, factors = _reader(body)
    graph = from_proto(model)
    InferShapes()(graph)
    (product,) = (each for each in products(graph.graph) if isinstance(each, Product))
    ranges = ranges_of(model, feed)
    shape = [16, 1, 1] if body == _CONV else [16]
    even = feed["x"] / factors.reshape(shape)
    divided = Reading(product, ranges["x"], None, None).divided(
        factors, (float(even.min()), float(even.max()))
    )
    assert divided.range is not None
    weights, _ = recovered({0: divided}, resolve_target("vnni"), "low", lambda step: None)
    numbers = Numbers(
        False,
        ranges,
        {product.key: quantize_weights(product.weights, product.channel_axis, None)},
        divided={product.key: Divided(factors.reshape(shape), divided.range, weights[0])},
    )
    chosen = {product.key: treatment(mode, smoothed=smoothed)}
    done = lower(graph, Plan.of(chosen), numbers)
    quantized = to_proto(graph)
    onnx.checker.check_model(quantized, full_check=True)
    assert done["divided input"] == smoothed
    expected = run(model, feed)[0]
    for level in ("all", "disabled"):
        found = decibels(expected, run_at(quantized, feed, level)[0])
        assert found > 30 if smoothed else found < 28


_FREE = """
g (float[N, S, 16] x) => (float[N, S, 200] y) {
    normal = LayerNormalization<axis = -1>(x, gain, shift)
    y = MatMul(normal, w)
}
"""
#: Something else reads the activation too, so that it has to be multiplied.
_PAID = """
g (float[N, S, 16] x) => (float[N, S, 16] y) {
    normal = LayerNormalization<axis = -1>(x, gain, shift)
    wide = MatMul(normal, w)
    back = MatMul(wide, v)
    even = Mul(normal, inverse)
    y = Add(even, back)
}
"""


def _optimized(body: str, folder: pathlib.Path, sqnr: float, passes: str) -> RunReport:
    paid = body == _PAID
    constants = {
        "gain": _SPREAD,
        "shift": _array(16),
        "w": _array(16, 256 if paid else 200) / _SPREAD[:, None],
    }
    if paid:
        constants |= {"v": _array(256, 16) / 16, "inverse": 1 / _SPREAD}
    model = parse(body, {name: array.astype(np.float32) for name, array in constants.items()})
    model.opset_import[0].version = 17
    onnx.save(model, folder / "in.onnx")
    np.savez(folder / "data.npz", x=_array(16, 1, 24, 16))
    return onnxopt.optimize(
        folder / "in.onnx",
        folder / "out.onnx",
        data=folder / "data.npz",
        passes=passes,
        goal="size",
        seconds=0.05,
        guard_speed=False,
        effort="low",
        budget=Budget(min_sqnr=sqnr, min_agreement=None),
    )


def _done(report: RunReport) -> Counter[str]:
    (quantize,) = (each for each in report.passes if each.outcome.changed_model)
    return quantize.outcome.rewritten


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_channels_are_evened_where_that_costs_nothing(scheme: str, tmp_path: pathlib.Path) -> None:
    passes = f"quantize{{scheme={scheme}}}"
    report = _optimized(_FREE, tmp_path, 28, passes)
    done = _done(report)
    assert done["evened activation"] == 1
    assert done["divided input"] == 0
    operators = [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node]
    assert operators.count("Mul") <= (2 if scheme == "dynamic" else 0)  # of scales
    without = _optimized(_FREE, tmp_path, 28, passes.replace("}", ",smooth=false}"))
    assert not without.changed


def test_a_product_is_put_in_where_the_budget_needs_it(tmp_path: pathlib.Path) -> None:
    report = _optimized(_PAID, tmp_path, 28, "quantize{scheme=static}")
    assert report.fidelity is not None
    assert report.fidelity.sqnr_db >= 28
    assert _done(report)["divided input"] == 1


def test_no_product_is_put_in_where_the_budget_holds_anyway(tmp_path: pathlib.Path) -> None:
    report = _optimized(_PAID, tmp_path, 1, "quantize{scheme=static}")
    assert _done(report)["divided input"] == 0
