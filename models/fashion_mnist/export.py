"""Exports trained weights to ONNX with BatchNorm left in, and checks the file.

    python -m models.fashion_mnist.export --weights weights.pt

The exporter that PyTorch uses by default folds BatchNorm into the convolutions; without its
optimizer it leaves hundreds of nodes of scaffolding that nobody ships. The older exporter, asked to
preserve the mode of a model that is in evaluation mode, writes the graph as the model is defined.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from models.fashion_mnist.model import FashionNet

OPSET = 18
# Absolute, on logits of magnitude 10: room for float32 sums taken in another order.
TOLERANCE = 1e-4


def export(model: nn.Module, path: Path) -> None:
    """Write ``model`` to ``path`` with its weights inside and a symbolic batch size."""
    batch_axis = {0: "batch"}
    torch.onnx.export(
        model.eval(),
        (torch.zeros(1, 1, 28, 28),),
        path,
        dynamo=False,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": batch_axis, "logits": batch_axis},
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )


def check(model: nn.Module, path: Path) -> float:
    """Compare the file in ONNX Runtime with ``model`` in PyTorch on random images.

    Returns:
        The largest absolute difference between the logits.

    Raises:
        ValueError: a BatchNorm is missing, or the difference exceeds ``TOLERANCE``.
    """
    exported = onnx.load(path)
    onnx.checker.check_model(exported, full_check=True)
    found = sum(node.op_type == "BatchNormalization" for node in exported.graph.node)
    defined = sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    if found != defined:
        raise ValueError(f"{path} has {found} BatchNormalization nodes, the model {defined}")

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    difference = 0.0
    for batch in (1, 7):
        images = torch.rand(batch, 1, 28, 28, generator=generator)
        with torch.inference_mode():
            wanted = model.eval()(images).numpy()
        (given,) = session.run(["logits"], {"image": images.numpy()})
        difference = max(difference, float(np.abs(given - wanted).max()))
    if difference > TOLERANCE:
        raise ValueError(f"{path} differs from the PyTorch model by {difference:.2g}")
    return difference


def export_command(model: nn.Module, out: Path) -> None:
    """Run the command line of an export: weights in, a checked file out.

    Args:
        model: the network, untrained; it takes what ``--weights`` holds.
        out: where to write it unless the command line says otherwise.
    """
    parser = argparse.ArgumentParser(description=f"Export {type(model).__name__} to ONNX.")
    parser.add_argument("--weights", type=Path, default=Path("weights.pt"))
    parser.add_argument("--out", type=Path, default=out, help="ONNX file (default: %(default)s)")
    arguments = parser.parse_args()

    model.load_state_dict(torch.load(arguments.weights, weights_only=True))
    export(model, arguments.out)
    difference = check(model, arguments.out)
    size = arguments.out.stat().st_size
    print(f"{arguments.out}: {size / 1e3:.0f} kB, within {difference:.1g} of PyTorch")


if __name__ == "__main__":
    export_command(FashionNet(), Path(__file__).parent / "fashion_mnist.onnx")
