"""What was optimized once is left as it is, on a real trained model, quantized."""

import pathlib

import numpy as np
import onnx

import onnxopt
from onnxopt.settings import Settings

_FOLDER = pathlib.Path(__file__).parents[2] / "models" / "fashion_mnist"


def test_optimizing_a_quantized_model_again_changes_nothing(tmp_path: pathlib.Path) -> None:
    images = np.load(_FOLDER / "calibration.npz")["image"][:16]
    np.savez(tmp_path / "data.npz", image=images)
    # By size, so that what is quantized does not hang on the machine's speed.
    settings = Settings(data=tmp_path / "data.npz", goal="size", effort="low", seconds=0.05)
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    onnxopt.optimize(_FOLDER / "fashion_mnist.onnx", once, settings)
    made = {node.op_type for node in onnx.load(once).graph.node}
    assert "QuantizeLinear" in made
    report = onnxopt.optimize(once, twice, settings)
    assert twice.read_bytes() == once.read_bytes()
    assert not report.changed
    reasons = [each.reason for each in report.treatments]
    assert set(reasons) == {"the model is quantized already"}
