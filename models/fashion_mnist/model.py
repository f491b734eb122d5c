"""A small residual network for 28 x 28 grey images, as PyTorch modules."""

# The project's type check does not follow torch, which makes nn.Module untyped here.

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class HardSwish(nn.Module):
    """``x * relu6(x + 3) / 6`` (Howard et al., 2019, "Searching for MobileNetV3").

    Spelled out rather than ``nn.Hardswish``, as most ports of MobileNetV3 spell it, so that the
    exported graph holds the chain of elementwise nodes that such models hold.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of ``x``, in the same shape."""
        return x * functional.relu6(x + 3.0) / 6.0


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from all of them (Hu et al., 2018)."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, channels // reduction, kernel_size=1)
        self.expand = nn.Conv2d(channels // reduction, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` [batch, channels, height, width] with its channels rescaled."""
        gate = functional.relu(self.reduce(self.pool(x)))
        return x * torch.sigmoid(self.expand(gate))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each with BatchNorm, added to a shortcut (He et al., 2016).

    The shortcut is the identity where the shape stays the same, and a strided 1 x 1 convolution
    with BatchNorm where it does not.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        activation: type[nn.Module],
        squeeze_excite: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.gate = SqueezeExcite(out_channels) if squeeze_excite else nn.Identity()
        self.activation = activation()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, h, w] to [batch, out_channels, h / stride, w / stride]."""
        y = self.activation(self.norm1(self.conv1(x)))
        y = self.gate(self.norm2(self.conv2(y)))
        return self.activation(y + self.shortcut(x))


class FashionNet(nn.Module):
    """Stem, three stages of residual blocks (16, 32 and 64 channels), pooling and a linear head.

    The first two stages use ReLU; the last uses HardSwish and squeeze-excite, as MobileNetV3 does
    where feature maps are small and these cost little.
    """

    def __init__(self, classes: int = len(CLASS_NAMES)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.stage1 = ResidualBlock(16, 16, 1, nn.ReLU)
        self.stage2 = nn.Sequential(
            ResidualBlock(16, 32, 2, nn.ReLU), ResidualBlock(32, 32, 1, nn.ReLU)
        )
        self.stage3 = nn.Sequential(
            ResidualBlock(32, 64, 2, HardSwish, squeeze_excite=True),
            ResidualBlock(64, 64, 1, HardSwish, squeeze_excite=True),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map ``image`` [batch, 1, 28, 28], float32 in [0, 1], to logits [batch, classes]."""
        features = self.stage3(self.stage2(self.stage1(self.stem(image))))
        logits: Tensor = self.head(torch.flatten(self.pool(features), 1))
        return logits
