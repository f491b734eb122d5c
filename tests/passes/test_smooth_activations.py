"""Channels of activations are evened out, and the model computes what it did."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.accuracy import Budget
from onnxopt.errors import OptionError
from onnxopt.model import from_proto, to_proto
from onnxopt.pass_contract import Outcome
from onnxopt.pass_manager import PassManager, parse_pipeline
from onnxopt.runtime.worker import Worker
from onnxopt.samples import Samples
from onnxopt.workbench import Workbench
from tests.differential import assert_same, op_types, parse, run

Array = np.ndarray
Feeds = Sequence[Mapping[str, Array]]

_GENERATOR = np.random.default_rng(7)
#: Two channels of 16 are far larger than the others.
_SPREAD = np.where(np.arange(16) % 8 == 3, 40.0, 1.0).astype(np.float32)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started


def _weights(*shape: int, spread_axis: int | None = None) -> Array:
    array = _GENERATOR.standard_normal(shape).astype(np.float32)
    if spread_axis is not None:
        array *= _SPREAD.reshape([-1 if axis == spread_axis else 1 for axis in range(len(shape))])
    return array


def _feeds(*shape: int, count: int = 4) -> Feeds:
    return [{"x": _GENERATOR.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def _smooth(
    worker: Worker, model: onnx.ModelProto, feeds: Feeds, pipeline: str = "smooth-activations"
) -> tuple[ir.Model, Outcome]:
    samples = Samples(lambda: map(dict, feeds))
    bench = Workbench(pathlib.Path("unused"), samples, samples, True, Budget(), worker)
    changed = from_proto(model)
    *_, report = PassManager(parse_pipeline(pipeline), workbench=bench).run(changed)
    result = to_proto(changed)
    onnx.checker.check_model(result)
    for feed in feeds:
        assert_same(run(model, feed), run(result, feed), rtol=1e-3)
    return changed, report.outcome


def _spread_of(model: ir.Model, name: str, feed: Mapping[str, Array], axis: int) -> float:
    """The greatest magnitude of any channel over the median one."""
    proto = to_proto(model)
    del proto.graph.output[:]
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    value = np.moveaxis(run(proto, feed)[0], axis, 0)
    magnitudes = np.abs(value).reshape(len(value), -1).max(axis=1)
    return float(magnitudes.max() / np.median(magnitudes))


def _refused(
    worker: Worker,
    model: onnx.ModelProto,
    feeds: Feeds,
    reason: str,
    pipeline: str = "smooth-activations",
) -> None:
    changed, outcome = _smooth(worker, model, feeds, pipeline)
    assert not outcome.modified
    assert op_types(changed) == op_types(from_proto(model))
    assert any(reason in each.reason for each in outcome.refusals), outcome.refusals


_NORM = """
net (float[b, s, 16] x) => (float[b, s, m] y) {
    normal = LayerNormalization<axis = -1>(x, gain, shift)
    y = MatMul(normal, w)
}
"""


def test_a_normalization_takes_the_factors(worker: Worker) -> None:
    gain = (_SPREAD * _GENERATOR.uniform(0.5, 1.5, 16)).astype(np.float32)
    model = parse(_NORM, {"gain": gain, "shift": _weights(16), "w": _weights(16, 8)})
    feeds = [*_feeds(2, 5, 16), *_feeds(1, 9, 16)]
    changed, outcome = _smooth(worker, model, feeds)
    assert outcome.rewritten["smooth"] == 1
    assert op_types(changed) == ["LayerNormalization", "MatMul"]
    before = _spread_of(from_proto(model), "normal", feeds[0], -1)
    assert _spread_of(changed, "normal", feeds[0], -1) < before / 4


def test_smooth_activations_are_left_alone(worker: Worker) -> None:
    ones = np.ones(16, np.float32)
    signs = np.sign(_weights(16, 8))
    model = parse(_NORM, {"gain": ones, "shift": ones * 0, "w": signs})
    pipeline = "smooth-activations{min-gain=3}"
    _refused(worker, model, _feeds(2, 50, 16), "gains too little", pipeline)


def test_a_second_run_changes_nothing(worker: Worker) -> None:
    model = parse(_NORM, {"gain": _SPREAD, "shift": _weights(16), "w": _weights(16, 8)})
    feeds = _feeds(2, 30, 16)
    changed, _ = _smooth(worker, model, feeds)
    _, outcome = _smooth(worker, to_proto(changed), feeds)
    assert not outcome.modified


def _read_spread(groups: int) -> Array:
    """The spread of the channels that each of 32 outputs reads."""
    by_output = _SPREAD.reshape(groups, 1, -1).repeat(32 // groups, axis=1)
    return np.asarray(by_output.reshape(32, -1, 1, 1))


@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("between", ["Relu", "LeakyRelu", "MaxPool<kernel_shape = [2, 2]>"])
def test_convolutions_pass_factors_on(worker: Worker, groups: int, between: str) -> None:
    model = parse(
        f"""
        net (float[b, 3, h, w] x) => (float[b, 32, p, q] y) {{
            first = Conv<pads = [1, 1, 1, 1]>(x, v, bias)
            middle = {between}(first)
            y = Conv<pads = [0, 1, 2, 0], group = {groups}>(middle, w)
        }}
        """,
        {
            "v": _weights(16, 3, 3, 3, spread_axis=0),
            "bias": _weights(16, spread_axis=0),
            # Small channels matter as much as large ones.
            "w": _weights(32, 16 // groups, 3, 3) / _read_spread(groups),
        },
    )
    feeds = [*_feeds(1, 3, 9, 7), *_feeds(2, 3, 8, 8)]
    changed, outcome = _smooth(worker, model, feeds, "infer-shapes,smooth-activations")
    assert outcome.rewritten["smooth"] == 1
    assert _spread_of(changed, "middle", feeds[0], 1) < 8


def test_products_with_a_bias_pass_factors_on(worker: Worker) -> None:
    model = parse(
        """
        net (float[b, 6] x) => (float[b, 5] y) {
            product = MatMul(x, v)
            biased = Add(bias, product)
            active = Relu(biased)
            y = Gemm<transB = 1, alpha = 0.5>(active, w, c)
        }
        """,
        {
            "v": _weights(6, 16, spread_axis=1),
            "bias": _weights(16, spread_axis=0),
            "w": _weights(5, 16),
            "c": _weights(5),
        },
    )
    feeds = _feeds(30, 6)
    changed, outcome = _smooth(worker, model, feeds)
    assert outcome.rewritten["smooth"] == 1
    assert len(op_types(changed)) == 4
    assert _spread_of(changed, "active", feeds[0], -1) < 10


_RESIDUAL = """
net (float[b, s, 16] x) => (float[b, s, 16] z) {
    normal = LayerNormalization<axis = -1>(x, gain, shift)
    wide = MatMul(normal, w)
    active = Sigmoid(wide)
    narrow = MatMul(active, v)
    z = Add(narrow, normal)
}
"""


def _residual(width: int) -> onnx.ModelProto:
    arrays = {"gain": _SPREAD, "shift": _weights(16), "w": _weights(16, width)}
    return parse(_RESIDUAL, {**arrays, "v": _weights(width, 16)})


def test_a_residual_reads_what_it_did(worker: Worker) -> None:
    changed, outcome = _smooth(worker, _residual(256), _feeds(2, 5, 16))
    assert outcome.rewritten["smooth"] == 1
    assert op_types(changed).count("Mul") == 1


def test_a_residual_beside_narrow_layers_stays(worker: Worker) -> None:
    _refused(worker, _residual(32), _feeds(2, 5, 16), "something else reads it too")


def test_a_residual_that_gains_little_stays(worker: Worker) -> None:
    pipeline = "smooth-activations{multiply-gain=60}"
    _, outcome = _smooth(worker, _residual(256), _feeds(2, 5, 16), pipeline)
    assert not outcome.modified


def _after(operator: str, width: int) -> onnx.ModelProto:
    text = f"""
        <ir_version: 8, opset_import: ["" : 20]>
        net (float[b, 16] x) => (float[b, m] y) {{
            large = Mul(x, spread)
            active = {operator}(large)
            y = MatMul(active, w)
        }}
        """
    return parse(text, {"spread": _SPREAD, "w": _weights(16, width)})


def test_wide_layers_read_a_product_where_nothing_takes_the_factors(worker: Worker) -> None:
    changed, outcome = _smooth(worker, _after("Gelu", 300), _feeds(40, 16))
    assert outcome.rewritten["smooth"] == 1
    assert op_types(changed) == ["Mul", "Gelu", "Mul", "MatMul"]
    input_model = parse(
        "net (float[b, 16] x) => (float[b, 300] y) { y = MatMul(x, w) }", {"w": _weights(16, 300)}
    )
    feeds = [{"x": feed["x"] * _SPREAD} for feed in _feeds(40, 16)]
    changed, _ = _smooth(worker, input_model, feeds)
    assert op_types(changed) == ["Mul", "MatMul"]


def test_narrow_layers_do_not(worker: Worker) -> None:
    model = _after("Gelu", 20)
    _refused(worker, model, _feeds(40, 16), "Gelu has no constants that scale its channels")


def test_a_clip_does_not_pass_factors(worker: Worker) -> None:
    model = parse(
        """
        net (float[b, 3, h, w] x) => (float[b, 8, p, q] y)
        <float low = {0.0}, float high = {6.0}> {
            first = Conv(x, v)
            middle = Clip(first, low, high)
            y = Conv(middle, w)
        }
        """,
        {"v": _weights(16, 3, 1, 1, spread_axis=0), "w": _weights(8, 16, 1, 1)},
    )
    _refused(worker, model, _feeds(1, 3, 9, 7), "Clip has no constants")


def test_shared_weights_stay(worker: Worker) -> None:
    model = parse(
        """
        net (float[b, 64] x) => (float[b, 64] y, float[b, 64] z) {
            one = MatMul(x, v)
            y = MatMul(one, w)
            z = MatMul(x, w)
        }
        """,
        {"v": _weights(64, 64), "w": _weights(64, 64)},
    )
    _refused(worker, model, _feeds(9, 64), "the weights have other readers")


def test_what_a_body_reads_stays(worker: Worker) -> None:
    model = parse(
        """
        net (float[b, 6] x) => (float[b, 5] y, float[c, d] z) {
            one = MatMul(x, v)
            y = MatMul(one, w)
            size = ReduceSum<keepdims = 0>(x)
            zero = Constant<value_float = 0.0>()
            more = Greater(size, zero)
            z = If (more) <
                then_branch = g1 () => (float[e, f] yes) { yes = Neg(one) },
                else_branch = g2 () => (float[g, h] no) { no = Abs(one) }
            >
        }
        """,
        {"v": _weights(6, 16, spread_axis=1), "w": _weights(16, 5)},
    )
    _refused(worker, model, _feeds(9, 6), "the body of control flow reads it too")


def test_activations_that_are_not_finite_are_left_alone(worker: Worker) -> None:
    model = parse(
        """
        net (float[b, 6] x) => (float[b, 5] y) {
            one = MatMul(x, v)
            y = MatMul(one, w)
        }
        """,
        {"v": _weights(6, 16, spread_axis=1), "w": _weights(16, 5)},
    )
    feeds = _feeds(9, 6)
    feeds[1]["x"][0, 0] = np.inf
    changed = from_proto(model)
    samples = Samples(lambda: map(dict, feeds))
    bench = Workbench(pathlib.Path("unused"), samples, samples, True, Budget(), worker)
    passes = parse_pipeline("smooth-activations")
    (report,) = PassManager(passes, workbench=bench).run(changed)
    assert not report.outcome.modified
    assert any(
        "infinite" in each.reason or "NaN" in each.reason for each in report.outcome.refusals
    )


def test_it_needs_samples() -> None:
    with pytest.raises(OptionError, match="--data"):
        PassManager(parse_pipeline("smooth-activations"))


def test_a_gain_below_zero_is_refused() -> None:
    with pytest.raises(OptionError, match="negative"):
        parse_pipeline("smooth-activations{min-gain=-1}")
