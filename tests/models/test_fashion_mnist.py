"""The committed Fashion-MNIST example is what its README says it is."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.fashion_mnist.evaluate import count_correct

FOLDER = Path(__file__).parents[2] / "models" / "fashion_mnist"
MODEL = FOLDER / "fashion_mnist.onnx"
EVALUATE = FOLDER / "evaluate.py"

BATCH_NORMS = 13
# Kernels differ between CPUs in the last bits, which can move an image or two.
ACCURACY_MARGIN = 0.005


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(MODEL, load_external_data=False)


def documented_accuracy() -> float:
    """Return the share of test.npz that the README says the model gets right."""
    found = re.search(r"\*\*(\d+\.\d+) %\*\* of the 2,000", (FOLDER / "README.md").read_text())
    assert found is not None, "the README no longer states the accuracy on test.npz"
    return float(found[1]) / 100


def signature(value: onnx.ValueInfoProto) -> tuple[str, int, list[str | int]]:
    tensor = value.type.tensor_type
    dims = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    return value.name, tensor.elem_type, dims


def test_batch_normalization_is_left_in_and_in_inference_mode(model: onnx.ModelProto) -> None:
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert len(nodes) == BATCH_NORMS
    for node in nodes:
        training = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert training.get("training_mode", 0) == 0
        assert len(node.output) == 1


def test_interface(model: onnx.ModelProto) -> None:
    float32 = onnx.TensorProto.FLOAT
    assert [signature(value) for value in model.graph.input] == [
        ("image", float32, ["batch", 1, 28, 28])
    ]
    assert [signature(value) for value in model.graph.output] == [
        ("logits", float32, ["batch", 10])
    ]
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]


def test_weights_are_inside_the_file(model: onnx.ModelProto) -> None:
    assert model.graph.initializer
    for weight in model.graph.initializer:
        assert weight.data_location != onnx.TensorProto.EXTERNAL, weight.name
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize(("name", "samples"), [("calibration.npz", 256), ("test.npz", 2000)])
def test_images(name: str, samples: int) -> None:
    with np.load(FOLDER / name) as arrays:
        images = arrays["image"]
    assert images.shape == (samples, 1, 28, 28)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0.0, 1.0)
    levels = images * 255
    np.testing.assert_allclose(levels, levels.round(), atol=1e-4)


def test_calibration_holds_model_inputs_only(model: onnx.ModelProto) -> None:
    with np.load(FOLDER / "calibration.npz") as arrays:
        assert set(arrays.files) == {value.name for value in model.graph.input}


def test_labels_are_balanced() -> None:
    with np.load(FOLDER / "test.npz") as arrays:
        assert set(arrays.files) == {"image", "label"}
        labels = arrays["label"]
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(np.bincount(labels, minlength=10), np.full(10, 200))


def test_accuracy_is_as_documented() -> None:
    correct, total = count_correct(MODEL)
    assert total == 2000
    assert abs(correct / total - documented_accuracy()) <= ACCURACY_MARGIN


def test_evaluate_counts_wrong_answers_as_wrong(tmp_path: Path) -> None:
    with np.load(FOLDER / "test.npz") as arrays:
        images, labels = arrays["image"][:300], arrays["label"][:300]
    right, shifted = tmp_path / "right.npz", tmp_path / "shifted.npz"
    np.savez(right, image=images, label=labels)
    np.savez(shifted, image=images, label=(labels + 1) % 10)
    correct, _ = count_correct(MODEL, right)
    wrongly_correct, total = count_correct(MODEL, shifted)
    assert total == 300
    assert wrongly_correct <= 300 - correct


def test_evaluate_as_a_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EVALUATE, MODEL], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.search(
        r"fashion_mnist\.onnx: top-1 accuracy \d+\.\d\d% \(\d+ of 2000 images\)", done.stdout
    )
