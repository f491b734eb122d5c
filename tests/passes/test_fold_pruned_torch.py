"""fold-pruned-channels on what PyTorch exports: masks, zeroed filters, BatchNorm scales of zero."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.model import load, to_proto
from onnxopt.pass_manager import PassManager, parse_pipeline
from tests.differential import assert_same, run

torch = pytest.importorskip("torch")
prune = pytest.importorskip("torch.nn.utils.prune")
nn = torch.nn
functional = nn.functional

EXPORTERS = [pytest.param(True, id="dynamo"), pytest.param(False, id="torchscript")]


class Block(nn.Module):  # type: ignore[name-defined]
    """An inverted residual with a squeeze-and-excite gate."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.squeeze = nn.Conv2d(inner, 8, 1)
        self.excite = nn.Conv2d(8, inner, 1)
        self.project = nn.Conv2d(inner, width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)

    def forward(self, x: Any) -> Any:
        y = functional.hardswish(self.norm1(self.expand(x)))
        y = functional.relu(self.norm2(self.depthwise(y)))
        gate = functional.relu(self.squeeze(functional.adaptive_avg_pool2d(y, 1)))
        y = y * functional.hardsigmoid(self.excite(gate))
        return x + self.norm3(self.project(y))


class Net(nn.Module):  # type: ignore[name-defined]
    """A stem, a block, a plain convolution, and a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.block = Block(16, 32)
        self.conv = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.hidden = nn.Linear(32, 24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Any) -> Any:
        y = functional.silu(self.norm(self.conv(self.block(functional.relu(self.stem(x))))))
        y = torch.flatten(functional.adaptive_avg_pool2d(y, 1), 1)
        return self.head(functional.gelu(self.hidden(y)))


class Attention(nn.Module):  # type: ignore[name-defined]
    """A transformer's block, with the attention that PyTorch offers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.widen, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Any) -> Any:
        batch, length, width = x.shape
        y = self.norm1(x)
        q, k, v = (
            layer(y).view(batch, length, 4, 8).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.narrow(functional.gelu(self.widen(self.norm2(x))))


def net() -> Any:
    torch.manual_seed(0)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
    return model.eval()


def export(model: Any, example: Any, path: pathlib.Path, dynamo: bool, axes: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(
                model,
                (example,),
                str(path),
                dynamo=True,
                input_names=["x"],
                dynamic_shapes=(dict.fromkeys(axes, torch.export.Dim.DYNAMIC),),
                external_data=False,
                verbose=False,
            )
        else:
            torch.onnx.export(
                model,
                (example,),
                str(path),
                dynamo=False,
                opset_version=17,
                input_names=["x"],
                dynamic_axes={"x": {axis: f"s{axis}" for axis in axes}},
            )


def pruned(path: pathlib.Path, shapes: Sequence[tuple[int, ...]]) -> tuple[onnx.ModelProto, int]:
    """Run the default pipeline, hold the outputs against the original's; the model, and the count.

    Args:
        path: The exported model.
        shapes: Shapes of inputs to compare on.
    """
    model = load(path)
    reports = PassManager(parse_pipeline("exact")).run(model)
    result = to_proto(model)
    original = onnx.load(path)
    for shape in shapes:
        feed = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
        assert_same(run(original, feed), run(result, feed))
    counts = [
        report.outcome.rewritten.total()
        for report in reports
        if report.name == "fold-pruned-channels"
    ]
    return result, sum(counts)


def widths(model: onnx.ModelProto) -> list[int]:
    """Output channels of the convolutions and matrix products, in order."""
    shapes = {each.name: tuple(each.dims) for each in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in shapes:
            shape = shapes[node.input[1]]
            transposed = any(each.name == "transB" and each.i for each in node.attribute)
            found.append(shape[0] if node.op_type == "Conv" or transposed else shape[-1])
    return found


IMAGES = [(2, 3, 32, 32), (1, 3, 40, 24)]


@pytest.mark.parametrize("dynamo", EXPORTERS)
@pytest.mark.parametrize("kept", ["masks", "zeros"])
def test_structured_pruning(kept: str, dynamo: bool, tmp_path: pathlib.Path) -> None:
    model = net()
    layers = (model.block.expand, model.block.squeeze, model.conv, model.hidden)
    for layer in layers:
        prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
        if kept == "zeros":
            prune.remove(layer, "weight")
    path = tmp_path / "model.onnx"
    export(model, torch.randn(2, 3, 32, 32), path, dynamo, (0, 2, 3))
    result, count = pruned(path, IMAGES)
    # stem, expand, depthwise, squeeze, excite, project, conv, hidden, head. Biases of the gate go
    # on through it; of what the padded depthwise convolution reads only constants of 0 can go.
    found = widths(result)
    assert found[3] == 4
    assert found[6:] == [16, 12, 10]
    assert count >= 16 + 12 + 4


@pytest.mark.parametrize("dynamo", EXPORTERS)
def test_scales_of_zero(dynamo: bool, tmp_path: pathlib.Path) -> None:
    model = net()
    with torch.no_grad():
        model.norm.weight[::2] = 0
        model.block.norm2.weight[:12] = 0
        model.block.norm2.bias[:12] = -torch.rand(12)  # nothing is left after Relu
    path = tmp_path / "model.onnx"
    export(model, torch.randn(2, 3, 32, 32), path, dynamo, (0, 2, 3))
    result, count = pruned(path, IMAGES)
    assert widths(result) == [16, 20, 20, 8, 20, 16, 16, 24, 10]
    assert count == 12 + 16


@pytest.mark.parametrize("dynamo", EXPORTERS)
def test_heads_and_feed_forward(dynamo: bool, tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    model = Attention().eval()
    prune.ln_structured(model.widen, "weight", amount=0.5, n=2, dim=0)
    with torch.no_grad():
        model.out.weight[:, 8:16] = 0  # the second head
    path = tmp_path / "model.onnx"
    export(model, torch.randn(2, 5, 32), path, dynamo, (0, 1))
    result, _ = pruned(path, [(2, 5, 32), (1, 9, 32)])
    assert widths(result) == [24, 24, 24, 32, 32, 32]
