"""Ranges of activations, chosen anew for the numbers that a trained quantized model has now.

Quantization chose the ranges of activations for the weights that it met; a training moves both.
Each scale is multiplied by the factor with the least squared error between what is rounded and what
comes of it, over samples; zero points stay, and with them what zero, padding and a fused Relu are.
Scales that were the same stay the same, since operators between them may need that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxopt.op_traits import Trait, has_trait, is_standard
from onnxopt.rewriting import Refuse
from onnxopt.training.data import Batch
from onnxopt.training.evaluating import evaluating
from onnxopt.training.grids import range_of
from onnxopt.training.importer import import_model
from onnxopt.training.numbers import tensor_of
from onnxopt.training.stored import stored
from onnxopt.training.write_back import write_back

__all__ = ["recalibrate"]

#: Factors that are tried: a half to double, in steps of an eighth of an octave.
_FACTORS = tuple(2 ** (step / 8) for step in range(-8, 9))
#: Of each activation so many numbers of a batch are looked at.
_MOST_NUMBERS = 1 << 16
#: A scale stays unless the error falls by this share.
_LEAST_GAIN = 0.01

#: Scale, zero point and type.
_Grid = tuple[float, int, ir.DataType]


@dataclasses.dataclass
class _Group:
    """Quantizers with the same grid."""

    scales: dict[ir.Value, None] = dataclasses.field(default_factory=dict)
    rounded: dict[str, None] = dataclasses.field(default_factory=dict)
    errors: Tensor = dataclasses.field(
        default_factory=lambda: torch.zeros(len(_FACTORS), dtype=torch.float64)
    )


def recalibrate(model: ir.Model, batches: Iterable[Batch]) -> list[str]:
    """Choose the scales of activations anew, in place; integer biases follow.

    Left alone are scales by channel or block, computed ones, and those of integers that leave the
    graph or reach an operator that computes with them.

    Args:
        model: A model with quantizers.
        batches: Samples to observe.

    Returns:
        Names of the tensors that changed.
    """
    groups = _groups(model.graph)
    names = list(dict.fromkeys(name for group in groups.values() for name in group.rounded))
    if not names:
        return []
    # The outputs, too: what leads to nothing else is not part of a module, nor are its scales.
    ends = [str(value.name) for value in model.graph.outputs if value.name not in names]
    module = import_model(model, outputs=[*names, *ends], learned_scales=True)
    with evaluating(module), torch.no_grad():
        for batch in batches:
            given = module(**{name: tensor_of(array) for name, array in batch.feed.items()})
            values = given if isinstance(given, tuple) else (given,)
            found = dict(zip(names, values, strict=False))
            for grid, group in groups.items():
                for name in group.rounded:
                    group.errors += _errors(found[name], grid)
        weights = module.weights
        usual = _FACTORS.index(1.0)
        for (scale, _, _), group in groups.items():
            best = int(group.errors.argmin())
            if not group.errors[best] < (1 - _LEAST_GAIN) * group.errors[usual]:
                continue
            for value in group.scales:
                weights[str(value.name)].fill_(scale * _FACTORS[best])
    return write_back(module, model)


def _errors(values: Tensor, grid: _Grid) -> Tensor:
    """Squared errors of rounding with each factor."""
    scale, zero, dtype = grid
    low, high = (bound - zero for bound in range_of(dtype))
    flat = values.reshape(-1)
    flat = flat[:: max(1, flat.numel() // _MOST_NUMBERS)]
    errors = []
    for factor in _FACTORS:
        step = scale * factor
        rounded = (flat / step).round_().clamp_(low, high).mul_(step)
        errors.append((rounded - flat).double().square().sum())
    return torch.stack(errors)


def _groups(graph: ir.Graph) -> dict[_Grid, _Group]:
    """Quantizers of activations by grid, without those of which somebody else relies on a scale."""
    groups: dict[_Grid, _Group] = {}
    spoiled: set[_Grid] = set()
    reached: set[ir.Node] = set()
    for node in graph:
        grid = _grid(node) if node.op_type == "QuantizeLinear" else None
        if grid is None or stored(node.inputs[0]) is not None:
            continue
        ends = list(_ends(node))
        if any(end is None or _grid(end) != grid for end in ends):
            spoiled.add(grid)
            spoiled.update(other for end in ends if end and (other := _grid(end)))
        group = groups.setdefault(grid, _Group())
        group.rounded[str(node.inputs[0].name)] = None  # type: ignore[union-attr]  # it has a type
        for each in (node, *(end for end in ends if end is not None)):
            reached.add(each)
            if each.inputs[1] is not None:
                group.scales[each.inputs[1]] = None
    for group_grid, group in groups.items():
        readers = (use.node for value in group.scales for use in value.uses())
        outside = any(reader not in reached for reader in readers)
        if outside or any(value.is_graph_output() for value in group.scales):
            spoiled.add(group_grid)
    return {grid: group for grid, group in groups.items() if grid not in spoiled}


def _grid(node: ir.Node) -> _Grid | None:
    """The constant grid of a quantizer of whole tensors; None where it has another."""
    if not is_standard(node) or len(node.inputs) < 3:
        return None
    scale, zero = stored(node.inputs[1]), stored(node.inputs[2])
    if scale is None or zero is None or scale.dtype != ir.DataType.FLOAT or scale.size != 1:
        return None
    try:
        range_of(zero.dtype)
    except Refuse:
        return None
    if zero.size != 1:
        return None
    number = float(np.asarray(scale.numpy()).reshape(()))
    return number, int(np.asarray(zero.numpy()).reshape(())), zero.dtype


def _ends(node: ir.Node) -> Iterator[ir.Node | None]:
    """The DequantizeLinear nodes that integers get to, moved but not changed; None for others."""
    pending = [node.outputs[0]]
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            yield None
        for use in value.uses():
            reader = use.node
            if reader.op_type == "DequantizeLinear" and use.idx == 0:
                yield reader
            elif _moves(reader):
                pending.extend(reader.outputs)
            else:
                yield None


def _moves(node: ir.Node) -> bool:
    return is_standard(node) and (node.op_type == "MaxPool" or has_trait(node, Trait.DATA_MOVEMENT))
