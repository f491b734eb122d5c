"""Prints the top-1 accuracy of FashionNet models in ONNX Runtime on the images of test.npz.

    python models/fashion_mnist/evaluate.py model.onnx [more.onnx ...]

Needs numpy and ONNX Runtime only.
"""

import argparse
from os import PathLike
from pathlib import Path

import numpy as np
import onnxruntime

TEST_FILE = Path(__file__).parent / "test.npz"
BATCH_SIZE = 100


def count_correct(model: str | PathLike[str], test_file: Path = TEST_FILE) -> tuple[int, int]:
    """Run a model over the test images on the CPU.

    Args:
        model: an ONNX file with the input ``image`` float32 [batch, 1, 28, 28] and the output
            ``logits`` [batch, 10].
        test_file: an ``.npz`` file with ``image`` and ``label``.

    Returns:
        How many images got their highest logit at their label, and how many there are.
    """
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    with np.load(test_file) as arrays:
        images, labels = arrays["image"], arrays["label"]
    correct = 0
    for start in range(0, len(images), BATCH_SIZE):
        batch = slice(start, start + BATCH_SIZE)
        (logits,) = session.run(["logits"], {"image": images[batch]})
        correct += int(np.count_nonzero(logits.argmax(axis=1) == labels[batch]))
    return correct, len(images)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure top-1 accuracy on test.npz.")
    parser.add_argument("models", nargs="+", metavar="model.onnx")
    parser.add_argument(
        "--data",
        type=Path,
        default=TEST_FILE,
        help="other images and labels (default: %(default)s)",
    )
    arguments = parser.parse_args()
    for model in arguments.models:
        correct, total = count_correct(model, arguments.data)
        print(f"{model}: top-1 accuracy {correct / total:.2%} ({correct} of {total} images)")


if __name__ == "__main__":
    main()
