"""Networks in PyTorch whose channels are pruned by the benchmarks, untrained.

How fast a network runs and how exactly it is rewritten does not depend on its training. Statistics
of BatchNormalization are drawn at random, so that pruned channels emit constants that are not 0, as
they do in trained networks.
"""

# ruff: noqa: D102 - what forward does is what the class is

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

__all__ = [
    "Gated",
    "MobileNet",
    "ResNet50",
    "Transformer",
    "export",
    "prepared",
    "prune_half",
    "silence",
]


class ConvNorm(nn.Module):
    """A convolution with BatchNormalization and perhaps an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        pad = kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.activation = activation or nn.Identity()

    def forward(self, x: Any) -> Any:
        return self.activation(self.norm(self.conv(x)))


class Bottleneck(nn.Module):
    """The block of ResNet-50 (He et al., 2016)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.reduce = ConvNorm(inputs, width, activation=nn.ReLU())
        self.conv = ConvNorm(width, width, 3, stride, activation=nn.ReLU())
        self.expand = ConvNorm(width, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else ConvNorm(inputs, outputs, stride=stride)

    def forward(self, x: Any) -> Any:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return functional.relu(self.expand(self.conv(self.reduce(x))) + shortcut)


class ResNet50(nn.Module):
    """ResNet-50: 25.6 million parameters, 4.1 billion MACs at 224 x 224."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 64, 7, 2, activation=nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        stages, inputs = [], 64
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            blocks = []
            for block in range(count):
                blocks.append(Bottleneck(inputs, width, stride if block == 0 else 1))
                inputs = 4 * width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, 1000)

    def forward(self, x: Any) -> Any:
        y = self.stages(self.pool(self.stem(x)))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(y, 1), 1))

    def shared(self) -> list[list[nn.Conv2d]]:
        """Convolutions whose outputs meet in additions, and every other one by itself."""
        found = [[self.stem.conv]]
        for stage in self.stages:
            stream = []
            for block in stage:
                found.extend([[block.reduce.conv], [block.conv.conv]])
                stream.append(block.expand.conv)
                if block.shortcut is not None:
                    stream.insert(0, block.shortcut.conv)
            found.append(stream)
        return found


class Gate(nn.Module):
    """Squeeze and excite (Hu et al., 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, width // 4, 1)
        self.excite = nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Any) -> Any:
        y = functional.relu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))
        return x * functional.hardsigmoid(self.excite(y))


class Inverted(nn.Module):
    """The block of MobileNetV2 and V3 (Sandler et al., 2018; Howard et al., 2019)."""

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        kernel: int,
        stride: int,
        act: nn.Module,
        gate: bool,
    ) -> None:
        super().__init__()
        self.expand = ConvNorm(inputs, inner, activation=act)
        self.depthwise = ConvNorm(inner, inner, kernel, stride, inner, act)
        self.gate = Gate(inner) if gate else nn.Identity()
        self.project = ConvNorm(inner, outputs)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Any) -> Any:
        y = self.project(self.gate(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """Like MobileNetV2 at width 1, with ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, 2, activation=nn.ReLU6())
        blocks, inputs = [], 32
        plan = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
        for factor, outputs, count, stride in (*plan, (6, 160, 3, 2), (6, 320, 1, 1)):
            for block in range(count):
                step = stride if block == 0 else 1
                blocks.append(
                    Inverted(inputs, factor * inputs, outputs, 3, step, nn.ReLU6(), gate=False)
                )
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = ConvNorm(inputs, 1280, activation=nn.ReLU6())
        self.head = nn.Linear(1280, 1000)

    def forward(self, x: Any) -> Any:
        y = self.last(self.blocks(self.stem(x)))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(y, 1), 1))

    def shared(self) -> list[list[nn.Conv2d]]:
        """As in `ResNet50`; a depthwise convolution has the filters of what it reads."""
        stream = [self.stem.conv]
        found = [stream, [self.last.conv]]
        for block in self.blocks:
            found.append([block.expand.conv, block.depthwise.conv])
            if not block.residual:
                stream = []
                found.append(stream)
            stream.append(block.project.conv)
        return found


class Gated(nn.Module):
    """A small net of inverted residuals with gates, and a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.Hardswish()
        self.stem = ConvNorm(3, 16, 3, 2, activation=act)
        self.blocks = nn.Sequential(
            Inverted(16, 64, 24, 3, 2, act, gate=True),
            Inverted(24, 72, 24, 5, 1, act, gate=True),
            Inverted(24, 96, 40, 3, 2, act, gate=False),
        )
        self.hidden, self.head = nn.Linear(40, 64), nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        y = functional.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1)
        return self.head(functional.hardswish(self.hidden(torch.flatten(y, 1))))

    def shared(self) -> list[list[nn.Module]]:
        """As in `ResNet50`, with what is squeezed and the hidden layer."""
        one, two, three = self.blocks
        expanded = [[block.expand.conv] for block in self.blocks]
        squeezed = [[block.gate.squeeze] for block in (one, two)]
        stream = [one.project.conv, two.project.conv]
        rest = [[self.stem.conv], [three.project.conv], [self.hidden]]
        return [stream, *rest, *expanded, *squeezed]


class Transformer(nn.Module):
    """A transformer's block after an embedding by patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 8, 8)
        self.norm1, self.norm2 = nn.LayerNorm(64), nn.LayerNorm(64)
        self.query, self.key, self.value, self.out = (nn.Linear(64, 64) for _ in range(4))
        self.widen, self.narrow = nn.Linear(64, 256), nn.Linear(256, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        y = self.patches(x).flatten(2).transpose(1, 2)
        batch, length, width = y.shape
        z = self.norm1(y)
        q, k, v = (
            layer(z).view(batch, length, 4, 16).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        y = y + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return self.head((y + self.narrow(functional.gelu(self.widen(self.norm2(y))))).mean(1))

    def shared(self) -> list[list[nn.Module]]:
        """The layers in front of the activation; the values, whose averages are constants."""
        return [[self.widen], [self.value]]


def prepared(net: nn.Module, seed: int = 0) -> nn.Module:
    """A net in evaluation mode, with statistics as they might be after training."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                uniform(module.running_mean, -0.3, 0.3)
                uniform(module.running_var, 0.5, 1.5)
                uniform(module.weight, 0.5, 1.5)
                uniform(module.bias, -0.5, 0.7)
    return net.eval()


def prune_half(net: Any, *, depthwise: bool = True) -> None:
    """Set half of the filters of each layer to zero, as `torch.nn.utils.prune` does.

    Layers whose outputs meet in additions get the mask of the first of them.

    Args:
        net: The net.
        depthwise: Whether depthwise convolutions are pruned with what they read; else they make
            borders of the constants there.
    """
    for layers in net.shared():
        prune.ln_structured(layers[0], "weight", amount=0.5, n=2, dim=0)
        dead = ~layers[0].weight_mask.flatten(1).any(dim=1)
        prune.remove(layers[0], "weight")
        for layer in layers[1:]:
            if depthwise or layer.groups == 1:
                with torch.no_grad():
                    layer.weight[dead] = 0


def silence(net: nn.Module) -> None:
    """Let filters of zero put out zero: what is left when what they emit is dropped.

    Their biases and those of the BatchNormalization behind them go, and activations that make
    something else of 0 are taken to give 0.
    """
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, ConvNorm):
                dead = ~module.conv.weight.flatten(1).any(dim=1)
                module.norm.weight[dead] = 0
                module.norm.bias[dead] = 0
            elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias[~module.weight.flatten(1).any(dim=1)] = 0


def export(net: nn.Module, path: pathlib.Path, shape: Sequence[int], axes: Iterable[int]) -> None:
    """Write a net as ONNX.

    Args:
        net: The net.
        path: The file.
        shape: Of the example.
        axes: Axes of the input of any size.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.zeros(*shape),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {axis: f"s{axis}" for axis in axes}},
        )
