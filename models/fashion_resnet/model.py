"""The teacher: a residual network that is larger than it need be, as most networks in use are."""

# The project's type check does not follow torch, which makes nn.Module untyped here.

import torch
from torch import Tensor, nn

from models.fashion_mnist.model import CLASS_NAMES, ResidualBlock


class FashionResNet(nn.Module):
    """Stem, three residual blocks (64, 128 and 128 channels), pooling and a linear head.

    An image is halved at once, so that most of the work is in wide layers on small maps, which
    processors do well.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width // 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(width // 4),
            nn.ReLU(),
            nn.Conv2d(width // 4, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(
            ResidualBlock(width, width, 1, nn.ReLU),
            ResidualBlock(width, 2 * width, 2, nn.ReLU),
            ResidualBlock(2 * width, 2 * width, 1, nn.ReLU),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, len(CLASS_NAMES))

    def forward(self, image: Tensor) -> Tensor:
        """Map ``image`` [batch, 1, 28, 28], float32 in [0, 1], to logits [batch, classes]."""
        features = self.blocks(self.stem(image))
        logits: Tensor = self.head(torch.flatten(self.pool(features), 1))
        return logits
