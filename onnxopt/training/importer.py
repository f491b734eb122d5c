"""Import an ONNX model into PyTorch."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence

import onnx_ir as ir
import onnx_ir.passes.common
from torch import Tensor

from onnxopt.errors import OptionError, UnsupportedModelError
from onnxopt.model import load
from onnxopt.rewriting import Refuse
from onnxopt.training import roles
from onnxopt.training.compiler import Weight, compile_graph, module_name
from onnxopt.training.grids import WeightGrid
from onnxopt.training.module import OnnxModule
from onnxopt.training.numbers import tensor_of, torch_type
from onnxopt.training.stored import stored

__all__ = ["import_model"]


def import_model(
    source: ir.Model | str | os.PathLike[str],
    *,
    outputs: Sequence[str] | None = None,
    trainable: Sequence[str] = (),
    frozen: Sequence[str] = (),
    batch_statistics: bool = False,
    learned_scales: bool = False,
) -> OnnxModule:
    """Import a model as a PyTorch module.

    Weights (see `onnxopt.training.roles`) become parameters. The model is not changed and shares no
    memory with the module; `write_back` puts trained weights into it.

    Args:
        source: A model or a file.
        outputs: Names of the values that the module gives: outputs of the graph or any others.
            None for the graph's outputs.
        trainable: Patterns (as of file names) of constants of floats that are parameters, too.
        frozen: Patterns of weights that are no parameters.
        batch_statistics: Whether BatchNormalization takes the statistics of the batch while the
            module trains, and moves the running ones. Else it does what it does in ONNX.
        learned_scales: Whether the scales of quantizers are parameters, too.

    Raises:
        ModelError: The file is no valid model.
        OptionError: A pattern or an output fits nothing in the model.
        UnsupportedModelError: Nodes cannot be turned into PyTorch; all of them are named.
    """
    model = source if isinstance(source, ir.Model) else load(source)
    if model.functions:
        model = model.clone()
        onnx_ir.passes.common.InlinePass()(model)
    graph = model.graph
    chosen = list(graph.outputs) if outputs is None else _values(graph, outputs)
    inputs = [value for value in graph.inputs if stored(value) is None]
    weights = _weights(graph, trainable, frozen, batch_statistics, learned_scales)
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))
    compiled = compile_graph(graph, inputs, chosen, weights, opset)
    read = {name for _, name in compiled.program.tensors}
    return OnnxModule(
        compiled,
        [weight for weight in weights if weight.name in read],
        inputs,
        [str(value.name) for value in chosen],
        batch_statistics,
    )


def _values(graph: ir.Graph, names: Sequence[str]) -> list[ir.Value]:
    known: dict[str | None, ir.Value] = {value.name: value for value in graph.inputs}
    known.update({value.name: value for node in graph for value in node.outputs})
    for name in names:
        if name not in known:
            raise OptionError(f"the model has no value '{name}'")
    return [known[name] for name in names]


def _weights(
    graph: ir.Graph,
    trainable: Sequence[str],
    frozen: Sequence[str],
    batch_statistics: bool,
    learned_scales: bool,
) -> list[Weight]:
    found = dict.fromkeys(roles.weights(graph))
    if learned_scales:
        found.update(dict.fromkeys(roles.scales(graph)))
    floats = [value for value in roles.constants(graph) if _is_float(value)]
    for pattern in trainable:
        found.update(dict.fromkeys(_matching(floats, pattern)))
    for pattern in frozen:
        for value in _matching(found, pattern):
            del found[value]
    moving = dict.fromkeys(roles.statistics(graph)) if batch_statistics else {}
    taken: set[str] = set()
    weights = []
    for value in [*found, *(each for each in moving if each not in found)]:
        tensor, shadow = _initial(value)
        name = module_name(str(value.name), taken)
        weights.append(Weight(value, tensor, name, value in found, shadow))
    return weights


def _matching(values: Iterable[ir.Value], pattern: str) -> list[ir.Value]:
    matching = [value for value in values if fnmatch.fnmatchcase(str(value.name), pattern)]
    if not matching:
        raise OptionError(f"no weight of the model is called '{pattern}'")
    return matching


def _is_float(value: ir.Value) -> bool:
    tensor = stored(value)
    return tensor is not None and tensor.dtype.is_floating_point()


def _initial(value: ir.Value) -> tuple[Tensor, bool]:
    """The numbers a weight starts with, and whether the model holds integers for them."""
    tensor = stored(value)
    assert tensor is not None
    try:
        grid = WeightGrid.of(value)
        if grid is not None:
            return tensor_of(grid.dequantized(tensor.numpy())), True
        torch_type(tensor.dtype)
    except Refuse as refusal:
        raise UnsupportedModelError(f"weight '{value.name}' cannot be trained: {refusal}") from None
    return tensor_of(tensor.numpy()), False
