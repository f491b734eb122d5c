"""Import one model with another tool and say, as JSON, what came of it. Needs nothing of ours.

Usage::

    python importer_peer.py onnx2torch model.onnx cases.npz

The cases hold for each of two runs the inputs (``0/in/NAME``) and what ONNX Runtime gives
(``0/out/0``).
"""

from __future__ import annotations

import importlib
import json
import sys
import unittest.mock
import warnings
from typing import Any

import numpy as np
import onnx
import torch


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tool, path, cases = sys.argv[1:]
    found: dict[str, Any] = {"imports": False, "errors": [], "trainable": 0, "gradients": 0}
    try:
        model = onnx.load(path)
        module = _convert(tool, model)
        found["imports"] = True
        found["trainable"] = sum(each.numel() for each in module.parameters())
        with np.load(cases) as arrays:
            for run in ("0", "1"):
                found["errors"].append(_error(module, model, arrays, run))
            found["gradients"] = _gradients(module, model, arrays)
    except Exception as error:  # whatever it is, it is the result
        found["message"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:160]
    print(json.dumps(found))


def _convert(tool: str, model: Any) -> Any:
    # Both import torchvision for operators that no model here has, and its build need not fit a CPU
    # build of torch.
    for name in ("torchvision", "torchvision.ops", "torchvision.io"):
        sys.modules[name] = unittest.mock.MagicMock()
    library: Any = importlib.import_module(tool)
    if tool == "onnx2torch":
        return library.convert(model).eval()
    return library.ConvertModel(model, experimental=True).eval()


def _run(module: Any, model: Any, arrays: Any, run: str) -> tuple[Any, ...]:
    held = {each.name for each in model.graph.initializer}
    names = [each.name for each in model.graph.input if each.name not in held]
    results = module(*(torch.from_numpy(arrays[f"{run}/in/{name}"]) for name in names))
    return tuple(results) if isinstance(results, tuple | list) else (results,)


def _error(module: Any, model: Any, arrays: Any, run: str) -> float:
    """Largest difference from ONNX Runtime, of the largest output."""
    with torch.no_grad():
        results = _run(module, model, arrays, run)
    worst = 0.0
    for place, result in enumerate(results):
        expected = arrays[f"{run}/out/{place}"]
        scale = max(float(np.abs(expected).max()), 1e-9)
        worst = max(worst, float(np.abs(result.numpy() - expected).max()) / scale)
    return worst


def _gradients(module: Any, model: Any, arrays: Any) -> int:
    """Numbers that get a gradient."""
    for each in module.parameters():
        each.requires_grad_()
    results = _run(module, model, arrays, "0")
    sum(each.float().square().mean() for each in results if each.requires_grad).backward()
    return sum(
        each.numel()
        for each in module.parameters()
        if each.grad is not None and bool(each.grad.any())
    )


if __name__ == "__main__":
    main()
