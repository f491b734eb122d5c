"""BatchNormalization put back after convolutions while a student trains, and folded at the end.

Exporters fold BatchNormalization into the convolution before it. What is left has the same answers
and is harder to train: after pruning, channels have other means and spreads than the next layer
learned to expect, and nothing holds them. So before a training each convolution with a bias gets a
normalization that changes nothing: with the mean m and variance v that its outputs have on the
samples, a scale of sqrt(v + e) and a shift of m,

    sqrt(v + e) (x - m) / sqrt(v + e) + m = x.

After it the normalization is folded (Jacob et al., 2018, arXiv:1712.05877, section 3.2): the kernel
of each channel is multiplied by f = scale / sqrt(v + e), and the bias b becomes (b - m) f + shift.
The graph is the one that it was, with other numbers in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from onnxopt.op_traits import is_standard
from onnxopt.training.data import Batch
from onnxopt.training.evaluating import evaluating
from onnxopt.training.importer import import_model
from onnxopt.training.module import OnnxModule
from onnxopt.training.numbers import tensor_of
from onnxopt.training.stored import replace_stored, stored

__all__ = ["Normalization", "fold", "insert"]

_EPSILON = 1e-5
_PARTS = ("scale", "shift", "mean", "variance")
Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Normalization:
    """One that was put in.

    Attributes:
        convolution: The node before it.
        node: The normalization itself.
        name: What the convolution's output is called without it.
    """

    convolution: ir.Node
    node: ir.Node
    name: str


def insert(model: ir.Model, batches: Iterable[Batch]) -> list[Normalization]:
    """Put a normalization after each convolution whose kernel and bias are its own.

    Left alone are convolutions without a bias (they never had a normalization that was folded),
    those that have one still, those that share their numbers with other nodes, integer ones, and
    those in bodies of control flow.

    Args:
        model: The model, changed in place; its answers stay the same.
        batches: Samples to take means and variances from.

    Returns:
        What was put in, for `fold`.
    """
    chosen = [node for node in model.graph if _is_bare(node)]
    if not chosen:
        return []
    moments = _moments(model, [str(node.outputs[0].name) for node in chosen], batches)
    taken = {value.name for node in model.graph for value in node.outputs}
    taken |= set(model.graph.initializers) | {value.name for value in model.graph.inputs}
    return [
        _insert(model.graph, node, *found, taken)
        for node, found in zip(chosen, moments, strict=True)
    ]


def fold(
    model: ir.Model, normalizations: Sequence[Normalization], changed: Sequence[str]
) -> list[str]:
    """Take the normalizations out again, and what they do into kernels and biases.

    Args:
        model: What `insert` changed, perhaps with other numbers since then.
        normalizations: What it put in.
        changed: Names of the tensors that changed since then; a layer without any gets back its
            numbers as they were.

    Returns:
        Names of the tensors of the model as it is now that changed.
    """
    names = dict.fromkeys(changed)
    for each in normalizations:
        convolution, node = each.convolution, each.node
        of_node = [str(value.name) for value in node.inputs[1:] if value is not None]
        kernel, bias = convolution.inputs[1], convolution.inputs[2]
        assert kernel is not None
        assert bias is not None
        own = [str(kernel.name), str(bias.name)]
        if any(name in names for name in (*of_node, *own)):
            _fold_numbers(node, kernel, bias)
            names.update(dict.fromkeys(own))
        for name in of_node:
            names.pop(name, None)
        _remove(model.graph, each)
    return list(names)


def _is_bare(node: ir.Node) -> bool:
    if node.op_type != "Conv" or not is_standard(node) or len(node.inputs) < 3:
        return False
    for value in node.inputs[1:3]:
        tensor = stored(value)
        if value is None or tensor is None or tensor.dtype != ir.DataType.FLOAT:
            return False
        if len(value.uses()) != 1 or value.is_graph_input() or value.is_graph_output():
            return False
    readers = [use.node.op_type for use in node.outputs[0].uses()]
    return bool(node.outputs[0].name) and "BatchNormalization" not in readers


def _moments(
    model: ir.Model, names: Sequence[str], batches: Iterable[Batch]
) -> list[tuple[Array, Array]]:
    """Means and variances of the channels of values, over samples and positions."""
    module: OnnxModule = import_model(model, outputs=names)
    counts = np.zeros(len(names))
    sums: list[Any] = [0.0] * len(names)
    squares: list[Any] = [0.0] * len(names)
    with evaluating(module), torch.no_grad():
        for batch in batches:
            given = module(**{name: tensor_of(array) for name, array in batch.feed.items()})
            for index, value in enumerate(given if isinstance(given, tuple) else (given,)):
                by_channel = value.double().movedim(1, 0).flatten(1)
                counts[index] += by_channel.shape[1]
                sums[index] = sums[index] + by_channel.sum(dim=1).numpy()
                squares[index] = squares[index] + by_channel.square().sum(dim=1).numpy()
    moments = []
    for count, total, square in zip(counts, sums, squares, strict=True):
        mean = total / count
        moments.append((mean, np.maximum(square / count - mean**2, 0.0)))
    return moments


def _insert(
    graph: ir.Graph, convolution: ir.Node, mean: Array, variance: Array, taken: set[str | None]
) -> Normalization:
    value = convolution.outputs[0]
    name = str(value.name)
    mean, variance = mean.astype(np.float32), variance.astype(np.float32)
    scale = np.sqrt(variance.astype(np.float64) + _EPSILON).astype(np.float32)
    constants = []
    for part, array in zip(_PARTS, (scale, mean, mean, variance), strict=True):
        called = _free(f"{name}/normalization/{part}", taken)
        constant = ir.Value(name=called, const_value=ir.tensor(array.copy(), name=called))
        constant.shape, constant.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
        graph.register_initializer(constant)
        constants.append(constant)
    node = ir.node("BatchNormalization", [value, *constants], {"epsilon": _EPSILON})
    made = node.outputs[0]
    made.shape, made.type = value.shape, value.type
    ir.convenience.replace_all_uses_with(value, made, replace_graph_outputs=True)
    node.replace_input_with(0, value)
    value.name = _free(f"{name}/before_normalization", taken)
    made.name = name
    graph.insert_after(convolution, node)
    return Normalization(convolution, node, name)


def _fold_numbers(node: ir.Node, kernel: ir.Value, bias: ir.Value) -> None:
    scale, shift, mean, variance = (_doubles(value) for value in node.inputs[1:])
    factor = scale / np.sqrt(variance + _EPSILON)
    weights = _doubles(kernel)
    # Adding zero turns a zero of negative sign, from a negative factor, into a plain one.
    scaled = weights * factor.reshape(-1, *([1] * (weights.ndim - 1))) + 0.0
    replace_stored(kernel, scaled)
    replace_stored(bias, (_doubles(bias) - mean) * factor + shift)


def _remove(graph: ir.Graph, normalization: Normalization) -> None:
    node = normalization.node
    value, made = normalization.convolution.outputs[0], node.outputs[0]
    constants = [constant for constant in node.inputs[1:] if constant is not None]
    made.name = None
    value.name = normalization.name
    ir.convenience.replace_all_uses_with(made, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    for constant in constants:
        del graph.initializers[str(constant.name)]


def _doubles(value: ir.Value | None) -> NDArray[np.float64]:
    tensor = stored(value)
    assert tensor is not None
    return np.asarray(tensor.numpy()).astype(np.float64)


def _free(name: str, taken: set[str | None]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
