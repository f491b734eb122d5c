"""How much each number of each weight matters, from data and gradients.

Each saliency estimates how much a quantity grows when the number is set to zero; summed over the
numbers of a channel it ranks channels: `prune-channels` reads the file that `save_saliency` writes.

========== ================================================ =================================
kind       estimates                                        source
========== ================================================ =================================
taylor     |w dL/dw|, the first-order change of a loss      Molchanov et al. 2019, 1906.10771
fisher     F w^2 / 2 with F = E[(dL/dw)^2] by sample        Theis et al. 2018, 1801.05787
hessian    |h| w^2 / 2 with h the diagonal of d2L/dw2       LeCun et al. 1990; h as in
                                                            Bekas et al. 2007
output     G w^2 / 2 with G the diagonal of J'J: half the   the Gauss-Newton part of hessian
           squared change of the outputs; needs no loss     for squared error
========== ================================================ =================================
"""

from __future__ import annotations

import os
import pathlib
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxopt.errors import FeedError, OptionError
from onnxopt.training.evaluating import evaluating
from onnxopt.training.module import OnnxModule
from onnxopt.training.numbers import array_of, tensor_of

__all__ = ["SaliencyKind", "saliency", "save_saliency"]

SaliencyKind = Literal["taylor", "fisher", "hessian", "output"]

#: Inputs by name, and what the loss compares with: labels, teacher outputs, or None.
Batch = tuple[Mapping[str, NDArray[Any]], Any]
#: From what the module gives and the second part of a batch to a number.
Loss = Callable[[Any, Any], Tensor]


def saliency(
    module: OnnxModule,
    batches: Iterable[Batch],
    kind: SaliencyKind = "output",
    loss: Loss | None = None,
    *,
    probes: int = 4,
    seed: int = 0,
) -> dict[str, NDArray[np.float32]]:
    """Estimate how much each number of each parameter matters. The module is not changed.

    Args:
        module: The imported model.
        batches: Batches of samples; they are read once, and none is kept.
        kind: What is estimated; see the module's text.
        loss: The loss, a mean over the samples of a batch; not for ``output``.
        probes: Random vectors for each batch, for ``hessian`` and ``output``.
        seed: Of these vectors.

    Returns:
        For each parameter, by its name in the graph, an array of its shape: the mean over batches.

    Raises:
        OptionError: A loss is missing or not wanted, or is no single number.
        FeedError: There are no batches, or the loss of one is not finite.
    """
    if (loss is None) != (kind == "output"):
        raise OptionError(
            f"saliency '{kind}' needs a loss" if loss is None else "saliency 'output' takes no loss"
        )
    names = [name for name, tensor in module.weights.items() if tensor.requires_grad]
    parameters = [module.weights[name] for name in names]
    totals = [torch.zeros_like(each) for each in parameters]
    generator = torch.Generator().manual_seed(seed)
    count = 0
    with evaluating(module):
        for inputs, target in batches:
            fed = {name: tensor_of(np.asarray(array)) for name, array in inputs.items()}
            outputs = module(**fed)
            if loss is None:
                found = _output_curvature(outputs, parameters, probes, generator)
            else:
                value = _scalar(loss(outputs, target), count)
                found = _from_loss(value, kind, parameters, fed, probes, generator)
            for total, each in zip(totals, found, strict=True):
                total.add_(each)
            count += 1
    if count == 0:
        raise FeedError("there are no samples to take gradients from")
    return {
        # What curves upwards in one batch and downwards in another cancels out before this.
        name: array_of(total.abs() / count).astype(np.float32)
        for name, total in zip(names, totals, strict=True)
    }


def save_saliency(path: str | os.PathLike[str], found: Mapping[str, NDArray[Any]]) -> None:
    """Write saliencies as an .npz file with the names of the weights, whole or not at all."""
    path = pathlib.Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in found.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.ascontiguousarray(array))
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def _scalar(value: Any, batch: int) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise OptionError("the loss has to be one number for a batch, such as a mean")
    if not torch.isfinite(value):
        raise FeedError(f"the loss of batch {batch} is not finite")
    return value.reshape(())


def _from_loss(
    value: Tensor,
    kind: SaliencyKind,
    parameters: list[Tensor],
    fed: Mapping[str, Tensor],
    probes: int,
    generator: torch.Generator,
) -> list[Tensor]:
    curved = kind == "hessian"
    gradients = _gradients(value, parameters, create_graph=curved)
    if kind == "taylor":
        return [(w * g).abs().detach() for w, g in zip(parameters, gradients, strict=True)]
    if kind == "fisher":
        # The mean over n samples has 1/n of the variance; around a minimum its mean is 0.
        size = next((each.shape[0] for each in fed.values() if each.ndim), 1)
        return [
            (0.5 * size * (w * g).square()).detach()
            for w, g in zip(parameters, gradients, strict=True)
        ]
    # The diagonal of diag(w) H diag(w), of which the noise does not depend on how large the weights
    # of a layer happen to be beside those of the next.
    diagonal = [torch.zeros_like(each) for each in parameters]
    for _ in range(probes):
        probe = [(w * _signs(w, generator)).detach() for w in parameters]
        product = sum((g * v).sum() for g, v in zip(gradients, probe, strict=True))
        for total, v, row in zip(
            diagonal, probe, _gradients(product, parameters, retain_graph=True), strict=True
        ):
            total.add_(0.5 * v * row / probes)
    return [each.detach() for each in diagonal]


def _output_curvature(
    outputs: Any, parameters: list[Tensor], probes: int, generator: torch.Generator
) -> list[Tensor]:
    """With random signs v by element, E[(d(v'y)/dw)^2] is the diagonal of J'J."""
    floats = [
        each
        for each in (outputs if isinstance(outputs, tuple) else (outputs,))
        if each.is_floating_point() and each.requires_grad
    ]
    if not floats:
        raise OptionError("no output of the model depends on its weights by gradients")
    totals = [torch.zeros_like(each) for each in parameters]
    for probe in range(probes):
        product = sum((each * _signs(each, generator)).sum() for each in floats)
        rows = _gradients(product, parameters, retain_graph=probe + 1 < probes)
        for total, row in zip(totals, rows, strict=True):
            total.add_(row.square() / probes)
    return [(0.5 * g * w.square()).detach() for g, w in zip(totals, parameters, strict=True)]


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, like.shape, generator=generator) * 2 - 1
    return signs.to(device=like.device, dtype=like.dtype)


def _gradients(value: Any, parameters: list[Tensor], **settings: bool) -> list[Tensor]:
    """Gradients; zeros where a parameter has no part in the value."""
    if not value.requires_grad:
        return [torch.zeros_like(each) for each in parameters]
    rows = torch.autograd.grad(value, parameters, allow_unused=True, **settings)
    return [
        torch.zeros_like(each) if row is None else row
        for row, each in zip(rows, parameters, strict=True)
    ]
