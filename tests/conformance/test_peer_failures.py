"""What other simplifiers get wrong in their released versions must come out right here.

Each case is a minimal model on which at least one of onnxsim, onnxslim, onnxoptimizer, onnxscript
or onnx_ir gives wrong answers, a model that does not run, or another interface.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import onnxopt
from onnxopt.model import Interface, from_proto, load, to_proto
from tests.differential import apply, assert_same, op_types, optimize, parse, run

_RANDOM = np.random.default_rng(11)


def _normal(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype(np.float32)


def _exact(model: onnx.ModelProto, *feeds: Mapping[str, Any]) -> ir.Model:
    return optimize(model, "exact", *feeds)


@pytest.mark.parametrize("op", ["Bernoulli", "RandomUniformLike", "RandomNormalLike"])
def test_random_nodes_on_one_input_stay_two(op: str) -> None:
    model = parse(
        f"g (float[1000] p) => (float[1000] y) {{ a = {op}(p) b = {op}(p) y = Sub(a, b) }}"
    )
    model.opset_import[0].version = 15
    optimized, _ = apply(model, "exact")
    assert op_types(optimized).count(op) == 2
    # ONNX Runtime's own optimizer merges Bernoulli nodes, so it is told to leave the graph alone.
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(to_proto(optimized).SerializeToString(), options)
    [y] = session.run(None, {"p": np.full(1000, 0.5, np.float32)})
    assert np.any(y != 0), "both nodes drew the same numbers"


@pytest.mark.parametrize("op", ["RandomUniform", "RandomNormal", "Multinomial"])
def test_random_nodes_without_equal_draws_stay_two(op: str) -> None:
    node = {
        "RandomUniform": "RandomUniform<shape = [50]>()",
        "RandomNormal": "RandomNormal<shape = [50]>()",
        "Multinomial": "Multinomial<sample_size = 50>(p)",
    }[op]
    model = parse(f"g (float[1, 4] p) => (a, b) {{ a = {node} b = {node} }}")

    optimized, _ = apply(model, "exact")
    assert op_types(optimized).count(op) == 2


def test_dropouts_that_may_train_are_neither_merged_nor_removed() -> None:
    model = parse(
        """
        g (float[1000] x, bool training) => (float[1000] y) {
            ratio = Constant<value = float {0.5}>()
            a = Dropout(x, ratio, training)
            b = Dropout(x, ratio, training)
            y = Sub(a, b)
        }
        """
    )
    inference = {"x": np.ones(1000, np.float32), "training": np.array(False)}
    optimized = _exact(model, inference)
    assert op_types(optimized).count("Dropout") == 2
    [y] = run(to_proto(optimized), inference | {"training": np.array(True)})
    assert np.any(y != 0), "both nodes dropped the same elements"


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
def test_a_vector_along_the_last_axis_is_not_along_channels(op: str) -> None:
    model = parse(
        f"g (float[1, 3, 8, 8] x) => (float[1, 6, 6, 6] y) {{ c = Conv(x, w) y = {op}(c, v) }}",
        {"w": _normal(6, 3, 3, 3), "v": _normal(6) + 3},
    )
    _exact(model, {"x": _normal(1, 3, 8, 8)})


def test_pad_with_zeros_before_max_pool() -> None:
    model = parse(
        """
        g (float[1, 2, 5, 5] x) => (float[1, 2, 6, 6] y) {
            p = Pad(x, pads, zero)
            y = MaxPool<kernel_shape = [2, 2]>(p)
        }
        """,
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "zero": np.array(0, np.float32)},
    )
    _exact(model, {"x": -1 - np.abs(_normal(1, 2, 5, 5))})


def test_pad_with_zeros_before_average_pool_that_does_not_count_padding() -> None:
    model = parse(
        """
        g (float[1, 2, 5, 5] x) => (float[1, 2, 6, 6] y) {
            p = Pad(x, pads)
            y = AveragePool<kernel_shape = [2, 2]>(p)
        }
        """,
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
    )
    _exact(model, {"x": _normal(1, 2, 5, 5)})


@pytest.mark.parametrize("second", [[0, -1], [0, 0], [-1, 0], [3, 2, -1], [0, 2, 2]])
def test_reshape_to_0_counts_from_the_first_reshape(second: list[int]) -> None:
    model = parse(
        "g (float[2, 3, 4] x) => (y) { a = Reshape(x, first) y = Reshape(a, second) }",
        {"first": np.array([6, 4]), "second": np.array(second)},
    )
    _exact(model, {"x": _normal(2, 3, 4)})


def test_batch_normalization_that_trains_is_not_folded() -> None:
    weights = {"w": _normal(4, 3, 3, 3)}
    for name in ("scale", "bias", "mean"):
        weights[name] = _normal(4)
    weights["variance"] = np.abs(_normal(4)) + 0.5
    model = parse(
        """
        g (float[2, 3, 6, 6] x) => (float[2, 4, 4, 4] y) {
            c = Conv(x, w)
            y, running_mean, running_variance =
                BatchNormalization<training_mode = 1>(c, scale, bias, mean, variance)
        }
        """,
        weights,
    )
    optimized, _ = apply(model, "exact")
    [node] = [node for node in optimized.graph if node.op_type == "BatchNormalization"]
    assert node.attributes["training_mode"].as_int() == 1


def test_identity_of_an_outer_value_in_a_branch() -> None:
    model = parse(
        """
        g (bool c, float[3] x) => (float[3] y) {
            outer = Relu(x)
            y = If (c) <
                then_branch = then () => (float[3] t) { t = Identity(outer) },
                else_branch = other () => (float[3] e) { e = Neg(outer) }
            >
        }
        """
    )
    feeds = [{"c": np.array(choice), "x": _normal(3)} for choice in (True, False)]
    _exact(model, *feeds)


def test_sparse_initializer_is_not_lost(tmp_path: pathlib.Path) -> None:
    model = parse("g (float[3, 4] x) => (float[3, 4] y) { a = Identity(x) y = Add(a, w) }")
    model.graph.sparse_initializer.append(
        onnx.SparseTensorProto(
            dims=[3, 4],
            values=onnx.numpy_helper.from_array(np.array([1.5, -2], np.float32), "w"),
            indices=onnx.numpy_helper.from_array(np.array([1, 11]), "i"),
        )
    )
    feed = {"x": _normal(3, 4)}
    _exact(model, feed)
    source = tmp_path / "in.onnx"
    source.write_bytes(model.SerializeToString())
    onnxopt.optimize(source, tmp_path / "out.onnx", guard_speed=False)
    assert_same(run(model, feed), run(onnx.load(tmp_path / "out.onnx"), feed))


@pytest.mark.parametrize(
    "node",
    [
        "z = ConstantOfShape(shape)",
        "z = Expand(one, shape)",
        "z = Tile(row, repeats)",
        "z = Range(start, limit, one_int) f = Cast<to = 1>(z)",
    ],
)
def test_a_large_constant_is_not_folded(node: str, tmp_path: pathlib.Path) -> None:
    last = "f" if "Range" in node else "z"
    model = parse(
        f"g (float[1] x) => (y) {{ {node} y = Add({last}, x) }}",
        {
            "shape": np.array([2048, 2048]),
            "one": np.ones((1, 1), np.float32),
            "row": np.ones((1, 1), np.float32),
            "repeats": np.array([2048, 2048]),
            "start": np.array(0),
            "limit": np.array(4_000_000),
            "one_int": np.array(1),
        },
    )
    used = {name for each in model.graph.node for name in each.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    optimized = _exact(model, {"x": _normal(1)})
    assert to_proto(optimized).ByteSize() < 1000


def test_unused_input_is_kept() -> None:
    model = parse("g (float[2] x, int64[N, 3] unused) => (float[2] y) { y = Relu(x) }")
    feed = {"x": _normal(2), "unused": np.zeros((4, 3), np.int64)}
    optimized = _exact(model, feed)
    assert Interface.of(optimized) == Interface.of(from_proto(model))


@pytest.mark.parametrize("op", ["Add", "Mul", "MatMul", "Reshape"])
def test_overridable_initializer_is_not_frozen(op: str) -> None:
    if op == "Reshape":
        text = "g (float[2, 2] x, int64[2] w) => (y) { a = Identity(w) y = Reshape(x, a) }"
        default, other = np.array([4, 1]), np.array([1, 4])
    else:
        text = f"g (float[2, 2] x, float[2, 2] w) => (y) {{ a = Neg(w) y = {op}(x, a) }}"
        default, other = np.zeros((2, 2), np.float32), _normal(2, 2)
    model = parse(text, {"w": default})
    x = _normal(2, 2)
    optimized = _exact(model, {"x": x}, {"x": x, "w": other})
    assert optimized.graph.inputs[1].is_initializer()


def test_doc_strings_and_metadata_are_kept(tmp_path: pathlib.Path) -> None:
    model = parse("g (float[2] x) => (float[2] y) { a = Identity(x) y = Relu(a) }")
    model.doc_string, model.graph.doc_string = "about the model", "about the graph"
    entry = model.metadata_props.add()
    entry.key, entry.value = "labels", "cat,dog"
    source = tmp_path / "in.onnx"
    source.write_bytes(model.SerializeToString())
    report = onnxopt.optimize(source, tmp_path / "out.onnx", guard_speed=False)
    assert report.changed
    after = load(tmp_path / "out.onnx")
    assert after.doc_string == "about the model"
    assert after.graph.doc_string == "about the graph"
    assert after.metadata_props == {"labels": "cat,dog"}


def test_quantized_weights_are_not_folded_back_to_floats() -> None:
    model = parse(
        """
        g (float[1, 64] x) => (float[1, 64] y) {
            f = DequantizeLinear(w, scale, zero)
            y = MatMul(x, f)
        }
        """,
        {
            "w": np.arange(4096, dtype=np.int64).astype(np.int8).reshape(64, 64),
            "scale": np.array(0.1, np.float32),
            "zero": np.array(3, np.int8),
        },
    )
    optimized = _exact(model, {"x": _normal(1, 64)})
    assert "DequantizeLinear" in op_types(optimized)


def test_functions_and_custom_operators_are_kept_or_inlined() -> None:
    model = parse(
        """
        <ir_version: 10, opset_import: ["" : 18, "corp.ops" : 1, "local" : 1]>
        g (float[2] x) => (float[2] y, float[2] z) {
            a = local.twice(x)
            y = Identity(a)
            z = corp.ops.Twist(y)
        }
        <domain: "local", opset_import: ["" : 18]>
        twice (v) => (w) { w = Add(v, v) }
        """
    )

    optimized, _ = apply(model, "exact")
    after = to_proto(optimized)
    onnx.checker.check_model(after)
    assert "Twist" in [node.op_type for node in after.graph.node]
    assert Interface.of(optimized) == Interface.of(from_proto(model))
