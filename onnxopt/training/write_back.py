"""Put trained tensors back into the graph that they came from, by name."""

from __future__ import annotations

import os
import shutil
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.errors import ModelError
from onnxopt.model import ExternalData, bytes_on_disk, load, save
from onnxopt.training.grids import WeightGrid
from onnxopt.training.module import OnnxModule
from onnxopt.training.numbers import array_of
from onnxopt.training.roles import constants
from onnxopt.training.stored import stored

__all__ = ["write_back", "write_back_file"]


def write_back(module: OnnxModule, model: ir.Model) -> list[str]:
    """Put the weights of a module into a model, in place.

    Only tensors that changed are touched: graph, names, types and every other byte stay. Integer
    weights are rounded to the grid that the model has for them.

    Args:
        module: What `import_model` made of this model, or of one with the same weights.
        model: The model.

    Returns:
        Names of the tensors that changed.

    Raises:
        ModelError: A weight is not in the model, has another shape there, or is no longer finite.
    """
    held: dict[str | None, ir.Value] = {value.name: value for value in constants(model.graph)}
    changed: list[tuple[ir.Value, NDArray[Any]]] = []
    for name, tensor in module.weights.items():
        if name not in held:
            raise ModelError(f"the model has no weight '{name}': it is another one than trained")
        value = held[name]
        old = stored(value)
        assert old is not None
        new = array_of(tensor)
        if tuple(old.shape) != new.shape:
            raise ModelError(
                f"weight '{name}' has shape {new.shape} after training and "
                f"{tuple(old.shape)} in the model"
            )
        if not np.isfinite(new.astype(np.float64)).all():
            raise ModelError(f"weight '{name}' is no longer finite; nothing was written")
        grid = WeightGrid.of(value) if name in module.integer_weights else None
        before = old.numpy()
        new = new.astype(before.dtype) if grid is None else grid.quantized(new, before)
        if new.tobytes() == before.tobytes():
            continue
        changed.append((value, new))
    for value, new in changed:
        _replace(value, new)
    return [str(value.name) for value, _ in changed]


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
    one_file = bytes_on_disk(source) == os.path.getsize(source)
    if not changed and one_file and not os.path.exists(target):
        shutil.copyfile(source, target)
    else:
        save(model, target, external_data)
    return changed


def _replace(value: ir.Value, array: NDArray[Any]) -> None:
    old = stored(value)
    assert old is not None
    new = ir.Tensor(array, dtype=old.dtype, name=old.name, doc_string=old.doc_string)
    new.metadata_props.update(old.metadata_props)
    if value.is_initializer():
        value.const_value = new
        return
    node = value.producer()
    assert node is not None
    node.attributes.clear()
    node.attributes.add(ir.AttrTensor("value", new))
    value.const_value = new
