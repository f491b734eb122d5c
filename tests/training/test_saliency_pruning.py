"""Saliencies with gradients from PyTorch, through their file, into prune-channels."""

import pathlib
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from onnxopt.accuracy import fidelity
from onnxopt.model import from_proto
from onnxopt.training import import_model
from onnxopt.training.saliency import SaliencyKind, saliency, save_saliency
from tests.differential import parse, run
from tests.passes.test_prune_channels import prune, shapes

TEXT = """g (float[n, 6, h, w] x) => (float[n, 5] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, first, b1)  b = Relu(a)
    c = Conv(b, second, b2)  d = Relu(c)
    e = GlobalAveragePool(d)  f = Flatten(e)  y = Gemm(f, last, b3)
}"""
WIDTH, SAMPLES = 32, 48


def misleading() -> tuple[onnx.ModelProto, np.ndarray]:
    """A network, and by channel of its first layer how much it matters.

    ReLU lets a channel be made larger and what reads it smaller with nothing changed; here the
    channels that matter least have the largest weights.
    """
    rng = np.random.default_rng(0)
    matters = np.where(np.arange(WIDTH) % 4 == 1, 0.02, 1.0)
    size = np.where(matters < 1, 8.0, 0.5) * (1 + rng.random(WIDTH))
    arrays = {
        "first": rng.standard_normal((WIDTH, 6, 3, 3)) * size[:, None, None, None] / 7,
        "b1": rng.standard_normal(WIDTH) * size / 10,
        "second": rng.standard_normal((16, WIDTH, 1, 1))
        * (matters / size)[None, :, None, None]
        / np.sqrt(WIDTH),
        "b2": rng.standard_normal(16) / 10,
        "last": rng.standard_normal((16, 5)) / 4,
        "b3": rng.standard_normal(5) / 10,
    }
    return parse(TEXT, {name: each.astype(np.float32) for name, each in arrays.items()}), matters


def cross_entropy(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(y, target)


@pytest.mark.parametrize("kind", ["taylor", "fisher", "hessian", "output"])
def test_gradients_find_the_channels_that_sizes_of_weights_do_not(
    kind: SaliencyKind, tmp_path: pathlib.Path
) -> None:
    model, matters = misleading()
    rng = np.random.default_rng(1)
    x = rng.standard_normal((SAMPLES, 6, 9, 9)).astype(np.float32)
    target = torch.from_numpy(rng.integers(0, 5, SAMPLES))
    step = 1 if kind == "fisher" else 8
    batches: list[tuple[dict[str, np.ndarray], Any]] = [
        ({"x": x[at : at + step]}, target[at : at + step]) for at in range(0, SAMPLES, step)
    ]
    module = import_model(from_proto(model))
    loss = None if kind == "output" else cross_entropy
    found = saliency(module, batches, kind, loss)
    path = tmp_path / "saliency.npz"
    save_saliency(path, found)
    feeds = [{"x": x[:8]}]
    common = "amount=0.25,round-to=1,spread=uniform,compensate=false,max-ratio=0.3"
    by_gradient, _ = prune(model, f"{common},criterion=saliency,saliency={path}", feeds)
    by_size, _ = prune(model, f"{common},criterion=l1", feeds)

    ranked = np.argsort(found["first"].sum(axis=(1, 2, 3)))
    assert set(ranked[: WIDTH // 4]) == set(np.flatnonzero(matters < 1))
    fresh = {"x": rng.standard_normal((16, 6, 9, 9)).astype(np.float32)}
    expected = run(model, fresh)
    gradient, size = (
        fidelity([expected], [run(each, fresh)], ["y"]).sqnr_db for each in (by_gradient, by_size)
    )
    assert shapes(by_gradient)["first"][0] < WIDTH
    assert gradient > size + 6
