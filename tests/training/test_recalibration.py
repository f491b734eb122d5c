"""Scales of activations, chosen anew."""

import pathlib
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxopt.model import from_proto, to_proto
from onnxopt.training.data import Batch
from onnxopt.training.distillation import DistillSettings, distill
from onnxopt.training.recalibration import recalibrate
from onnxopt.training.settings import TrainingSettings
from tests.differential import parse
from tests.training import models
from tests.training.test_quantized import in_runtime, quantized_convolution


def scaled(model: onnx.ModelProto, factor: float, *names: str) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in names:
            array = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return changed


def numbers(model: onnx.ModelProto, name: str) -> Any:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def images(seed: int) -> Any:
    return models.random(seed, 30, 3, 6, 6) * 1.5


@pytest.mark.parametrize("wrong", [0.5, 2.0])
def test_a_scale_that_no_longer_fits_is_mended_and_the_bias_follows(wrong: float) -> None:
    right = quantized_convolution()
    model = scaled(right, wrong, "x_scale", "b_scale")
    held = from_proto(model)
    changed = recalibrate(held, [Batch({"x": images(1)}, ())])
    assert {"x_scale", "b_scale", "b"} <= set(changed)
    assert not set(changed) & {"w", "w_scale", "w_zero", "x_zero", "head"}
    mended = to_proto(held)
    x_scale, b_scale = numbers(mended, "x_scale"), numbers(mended, "b_scale")
    np.testing.assert_allclose(b_scale, x_scale * numbers(mended, "w_scale"), rtol=1e-6)
    bias = numbers(model, "b") * numbers(model, "b_scale")
    np.testing.assert_allclose(numbers(mended, "b") * b_scale, bias, atol=b_scale.max())
    x = images(2)
    reference = onnx.ModelProto()
    reference.CopyFrom(model)
    conv = next(node for node in reference.graph.node if node.op_type == "Conv")
    conv.input[0] = "x"  # without rounding the input
    wanted = in_runtime(reference, x)
    errors = [float(np.square(in_runtime(each, x) - wanted).mean()) for each in (model, mended)]
    assert errors[1] < errors[0] / 1.5
    optimized = in_runtime(mended, x, optimized=True)
    np.testing.assert_allclose(optimized, in_runtime(mended, x), atol=0.05 * np.abs(wanted).max())


def test_a_scale_that_fits_stays() -> None:
    held = from_proto(quantized_convolution())
    recalibrate(held, [Batch({"x": images(1)}, ())])
    before = to_proto(held).SerializeToString(deterministic=True)
    assert recalibrate(held, [Batch({"x": images(1)}, ())]) == []
    assert to_proto(held).SerializeToString(deterministic=True) == before


_POOLED = """g (float[n, 2, 8] x) => (float[n, 2, 4] y) {
    q = QuantizeLinear(x, s, z)
    p = MaxPool<kernel_shape=[2], strides=[2]>(q)
    y = DequantizeLinear(p, s2, z2)
}"""
_REQUANTIZED = """g (float[n, 2, 8] x) => (float[n, 2, 8] y) {
    q = QuantizeLinear(x, s, z)
    y = DequantizeLinear(q, s2, z2)
}"""
_GIVEN_OUT = """g (float[n, 2, 8] x) => (uint8[n, 2, 8] q, float[n, 2, 8] y) {
    q = QuantizeLinear(x, s, z)
    y = DequantizeLinear(q, s2, z2)
}"""
_OTHERWISE_READ = """g (float[n, 2, 8] x) => (float[n, 2, 8] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    y = Mul(d, s)
}"""
_COMPUTED_WITH = """g (float[n, 2, 8] x) => (float[n, 2, 8] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    i = Cast<to=6>(q)
    f = Cast<to=1>(i)
    y = Add(d, f)
}"""


@pytest.mark.parametrize(
    ("text", "second", "expected"),
    [
        (_POOLED, 0.001, ["s", "s2"]),
        (_POOLED, 0.002, []),
        (_REQUANTIZED, 0.002, []),
        (_GIVEN_OUT, 0.001, []),
        (_OTHERWISE_READ, 0.001, []),
        (_COMPUTED_WITH, 0.001, []),
    ],
)
def test_scales_that_belong_together_move_together_or_not_at_all(
    text: str, second: float, expected: list[str]
) -> None:
    known: dict[str, Any] = {
        "s": np.float32(0.001),
        "s2": np.float32(second),
        "z": np.uint8(128),
        "z2": np.uint8(128),
    }
    held = from_proto(parse(text, {name: each for name, each in known.items() if name in text}))
    assert sorted(recalibrate(held, [Batch({"x": models.random(0, 9, 2, 8)}, ())])) == expected
    if expected:
        mended = to_proto(held)
        assert numbers(mended, "s") == numbers(mended, "s2") > known["s"]


def test_distilling_a_quantized_student_ends_with_it(tmp_path: pathlib.Path) -> None:
    right = quantized_convolution()
    student = scaled(scaled(right, 0.5, "x_scale", "b_scale"), 0.7, "head")
    onnx.save(right, tmp_path / "teacher.onnx")
    onnx.save(student, tmp_path / "student.onnx")
    np.savez(tmp_path / "data.npz", x=np.concatenate([images(seed) for seed in range(6)]))
    loop = TrainingSettings(steps=40, batch_size=16, evaluations=2, learning_rate=0.02)
    results = {}
    for wanted in (True, False):
        out = tmp_path / f"{wanted}.onnx"
        settings = DistillSettings(training=loop, recalibrate=wanted)
        results[wanted] = distill(
            tmp_path / "teacher.onnx",
            tmp_path / "student.onnx",
            out,
            tmp_path / "data.npz",
            settings,
        )
        assert ("x_scale" in results[wanted].changed) is wanted
        assert (numbers(onnx.load(out), "x_scale") > numbers(student, "x_scale")) == wanted
    assert results[True].after.main > results[False].after.main + 1.5
    assert any("chosen anew after the training:" in each for each in results[True].notes)
