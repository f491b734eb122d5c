"""Exports the teacher's weights to ONNX with BatchNorm left in, and checks the file.

python -m models.fashion_resnet.export --weights weights.pt
"""

from pathlib import Path

from models.fashion_mnist.export import export_command
from models.fashion_resnet.model import FashionResNet

if __name__ == "__main__":
    export_command(FashionResNet(), Path(__file__).parent / "teacher.onnx")
