"""One training step of an imported model beside the network it was exported from.

Usage::

    python -m benchmarks.importer_training lite0 time     # both in turn; JSON
    python -m benchmarks.importer_training lite0 ours     # one of both alone: peak memory

Both take the same batch, the same loss and plain SGD, on one thread, with batch statistics where
there is BatchNormalization and without dropout.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.processes import own_peak_kib
from benchmarks.zoo import model_path
from benchmarks.zoo_packages import minilm_network

__all__ = ["PAIRS", "Pair"]

_FASHION_MNIST = pathlib.Path(__file__).parents[1] / "models" / "fashion_mnist"
_ROUNDS = 8
_WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class Pair:
    """A model and the network it comes from.

    Attributes:
        native: Makes the network: a module that takes the same inputs by position.
        path: Finds the model.
        inputs: Makes a batch.
    """

    native: Callable[[], Any]
    path: Callable[[], pathlib.Path]
    inputs: Callable[[], tuple[Any, ...]]


def _lite0() -> Any:
    library: Any = importlib.import_module("efficientnet_lite_pytorch")  # of the extra bench
    return library.EfficientNet.from_name("efficientnet-lite0")


def _fashion_net() -> Any:
    from models.fashion_mnist.model import FashionNet

    return FashionNet()


def _sentences() -> tuple[Any, ...]:
    ids = torch.randint(0, 30_000, (16, 32))
    mask = torch.ones_like(ids)
    mask[1::2, 24:] = 0
    return ids, mask, torch.zeros_like(ids)


PAIRS = {
    "fashion_mnist": Pair(
        _fashion_net,
        lambda: _FASHION_MNIST / "fashion_mnist.onnx",
        lambda: (torch.randn(64, 1, 28, 28),),
    ),
    "lite0": Pair(_lite0, lambda: model_path("lite0-bn"), lambda: (torch.randn(8, 3, 224, 224),)),
    "minilm": Pair(minilm_network, lambda: model_path("minilm"), _sentences),
}


def _ours(pair: Pair) -> Any:
    from onnxopt.training import import_model

    return import_model(pair.path(), batch_statistics=True)


def _trainer(network: Any, inputs: tuple[Any, ...]) -> Callable[[], None]:
    network.train()
    for each in network.modules():
        if isinstance(each, torch.nn.Dropout):
            each.p = 0.0
    optimizer: Any = torch.optim.SGD(network.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        network(*inputs).square().mean().backward()
        optimizer.step()

    return step


def main() -> None:
    name, what = sys.argv[1:]
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.random.manual_seed(0)
    pair = PAIRS[name]
    inputs = pair.inputs()
    makers: dict[str, Callable[[], Any]] = {"native": pair.native, "ours": lambda: _ours(pair)}
    if what != "time":
        step = _trainer(makers[what](), inputs)
        for _ in range(_WARM_UP + 1):
            step()
        print(json.dumps({"peak_kib": own_peak_kib()}))
        return
    steps = {each: _trainer(make(), inputs) for each, make in makers.items()}
    for step in steps.values():
        for _ in range(_WARM_UP):
            step()
    seconds: dict[str, list[float]] = {each: [] for each in steps}
    for round_ in range(_ROUNDS):
        order = list(steps) if round_ % 2 else list(reversed(steps))
        for each in order:
            start = time.perf_counter()
            steps[each]()
            seconds[each].append(time.perf_counter() - start)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
