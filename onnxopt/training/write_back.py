"""Put trained tensors back into the graph that they came from, by name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.errors import ModelError
from onnxopt.model import ExternalData, bytes_on_disk, load, stage
from onnxopt.training.bias_scales import following_scales
from onnxopt.training.grids import WeightGrid
from onnxopt.training.module import OnnxModule
from onnxopt.training.numbers import array_of
from onnxopt.training.roles import constants, scales
from onnxopt.training.stored import replace_stored, stored

__all__ = ["write_back", "write_back_file"]


def write_back(module: OnnxModule, model: ir.Model) -> list[str]:
    """Put the weights of a module into a model, in place.

    Only tensors that changed are touched: graph, names, types and every other byte stay. Integer
    weights are rounded to the grid that the model has for them; where the scales of a layer were
    trained, that of its integer bias follows.

    Args:
        module: What `import_model` made of this model, or of one with the same weights.
        model: The model.

    Returns:
        Names of the tensors that changed.

    Raises:
        ModelError: A weight is not in the model, has another shape there, or is no longer finite,
            or a scale is no longer positive. The model is unchanged then.
    """
    held: dict[str | None, ir.Value] = {value.name: value for value in constants(model.graph)}
    trained = {name: array_of(tensor) for name, tensor in module.weights.items()}
    steps = {value.name for value in scales(model.graph)}
    for name, new in trained.items():
        _check(name, new, held, name in steps)
    changed = []
    for name, new in trained.items():
        if name not in module.integer_weights and replace_stored(held[name], new):
            changed.append(name)
    if steps.intersection(changed):
        for value, scale in list(following_scales(model.graph)):
            replace_stored(value, scale)
            changed.append(str(value.name))
    for name, new in trained.items():
        if name in module.integer_weights:
            grid, old = WeightGrid.of(held[name]), stored(held[name])
            assert grid is not None
            assert old is not None
            if replace_stored(held[name], grid.quantized(new, old.numpy())):
                changed.append(name)
    return changed


def write_back_file(
    module: OnnxModule,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    external_data: ExternalData = "auto",
) -> list[str]:
    """Write a model file with the weights of a module; where none changed, a copy of its bytes.

    Returns:
        Names of the tensors that changed.

    Raises:
        ModelError: As `write_back`, or the file cannot be read or written.
    """
    model = load(source)
    changed = write_back(module, model)
    staged = stage(model, target, external_data)
    one_file = len(list(staged.path.parent.iterdir())) == 1
    if not changed and one_file and bytes_on_disk(source) == os.path.getsize(source):
        shutil.copyfile(source, staged.path)
    staged.commit()
    return changed


def _check(
    name: str, new: NDArray[Any], held: Mapping[str | None, ir.Value], is_scale: bool
) -> None:
    if name not in held:
        raise ModelError(f"the model has no weight '{name}': it is another one than trained")
    old = stored(held[name])
    assert old is not None
    if tuple(old.shape) != new.shape:
        raise ModelError(
            f"weight '{name}' has shape {new.shape} after training and {tuple(old.shape)} in the "
            "model"
        )
    numbers = new.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ModelError(f"weight '{name}' is no longer finite; nothing was written")
    if is_scale and not (numbers > 0).all():
        raise ModelError(f"scale '{name}' is no longer positive; nothing was written")
