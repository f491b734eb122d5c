import pathlib

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxopt.analysis.inspection import inspect_model
from onnxopt.model import from_proto, load
from tests.differential import parse


def test_weights_in_constant_nodes_and_bodies_count() -> None:
    text = """g (bool c, float[2] x) => (float[2] y) {
        k = Constant<value = float[2] {0, 3}>()
        a = Mul(x, k)
        y = If (c) <
            then_branch = t () => (float[2] t1) <float[2] u = {1, 2}> { t1 = Add(a, u) },
            else_branch = e () => (float[2] e1) { e1 = Neg(a) }
        >
    }"""
    facts = inspect_model(from_proto(parse(text)))
    assert {(each.name, each.operator) for each in facts.tensors} == {("k", "Mul"), ("u", "Add")}
    assert (facts.parameters, facts.weight_bytes, facts.zeros) == (4, 16, 0.25)
    assert (facts.bodies, facts.nodes) == (2, 5)
    assert {each.name: each.count for each in facts.operators}["Add"] == 1


def test_shapes_and_indices_are_no_parameters() -> None:
    text = """g (float[4] x) => (float[2, 2] y) <int64[2] s = {2, 2}, float[4] w = {1, 2, 3, 4}> {
        a = Mul(x, w) y = Reshape(a, s)
    }"""
    facts = inspect_model(from_proto(parse(text)))
    assert facts.parameters == 4
    assert facts.precision == {"float": 16, "int64": 16}


def test_zeros_of_small_types() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4, np.float16):
        array = np.array([0, -0.0, 1, 2], dtype=dtype)
        name = np.dtype(dtype).name
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    facts = inspect_model(from_proto(proto))
    assert [each.zeros for each in facts.tensors] == [2, 2, 2, 2]
    assert sum(facts.precision.values()) == 8 + 8 + 4 + 2


def test_defaults_and_other_kinds_of_inputs() -> None:
    proto = parse(
        "g (float[n] x, float[1] s = {2}, seq(float[n]) q) => (float[n] y) { y = Mul(x, s) }"
    )
    inputs = inspect_model(from_proto(proto)).inputs
    assert [each.has_default for each in inputs] == [False, True, False]
    assert "Sequence" in inputs[2].type


def test_external_bytes(tmp_path: pathlib.Path) -> None:
    array = np.zeros(1000, np.float32)
    text = "g (float[1000] x) => (float[1000] y) { y = Mul(x, w) }"
    path = tmp_path / "model.onnx"
    onnx.save_model(parse(text, {"w": array}), path, save_as_external_data=True, location="w.bin")
    facts = inspect_model(load(path))
    assert (facts.external_bytes, facts.zeros) == (4000, 1.0)


def test_model_is_not_changed() -> None:
    text = "g (float[n, 4] x, float[4, 4] w) => (float[n, 4] y) { a = Relu(x) y = MatMul(a, w) }"
    model = from_proto(parse(text))
    inspect_model(model, {"x": (3, 4)})
    assert model.graph.node(0).outputs[0].shape is None
    assert str(model.graph.inputs[0].shape) == "[n,4]"


def test_what_cannot_be_inferred_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise onnx.shape_inference.InferenceError("it is too strange\nin two lines")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", failing)
    text = "g (float[2, 3] x, float[3, 5] w) => (float[2, 5] y) { y = MatMul(x, w) }"
    facts = inspect_model(from_proto(parse(text)))
    assert facts.notes == ("Shapes could not be inferred: it is too strange",)
    assert facts.macs == "30"
