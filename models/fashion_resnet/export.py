"""Exports the teacher's weights to ONNX with BatchNorm left in, and checks the file.

python -m models.fashion_resnet.export --weights weights.pt
"""

import argparse
from pathlib import Path

import torch

from models.fashion_mnist.export import check, export
from models.fashion_resnet.model import FashionResNet


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Export FashionResNet to ONNX.")
    parser.add_argument("--weights", type=Path, default=Path("weights.pt"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "teacher.onnx")
    arguments = parser.parse_args()
    model = FashionResNet()
    model.load_state_dict(torch.load(arguments.weights, weights_only=True))
    export(model, arguments.out)
    difference = check(model, arguments.out)
    size = arguments.out.stat().st_size
    print(f"{arguments.out}: {size / 1e3:.0f} kB, within {difference:.1g} of PyTorch")


if __name__ == "__main__":
    main()
