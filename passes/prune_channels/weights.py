"""The weights of layers that lose inputs: without them, and with the others taking over."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.analysis.values import constant_array, has_one_use
from onnxopt.channels import Layer
from onnxopt.numerics.input_removal import checked_refit, refit, usual_damping
from onnxopt.rewriting import Context, Rewriter

from .evidence import Evidence, layer_input

__all__ = ["prune_reader", "zero_writer"]

Mask = NDArray[np.bool_]

#: What is tried, as a part of the mean of the diagonal.
_DAMPINGS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def prune_reader(
    layer: Layer,
    removed: Mask,
    evidence: Evidence | None,
    context: Context,
    *,
    thorough: bool = True,
) -> None:
    """Give a layer no weights for inputs that go.

    Args:
        layer: The layer.
        removed: By atom, whether it goes.
        evidence: Moments to let the other inputs take over by; None to leave these as they are.
        context: For new constants.
        thorough: Look for the best damping, which takes several times as long.
    """
    assert layer.inputs is not None
    gone = removed[layer.inputs]
    if not gone.any():
        return
    source = None if evidence is None else layer_input(layer)
    parts = gone.reshape(layer.groups, -1)
    if source is None or evidence is None:
        blocks = np.array(layer.blocks)
        blocks[parts] = 0
        _write(layer.node, 1, layer.weights_of(blocks), context)
        return
    weights = layer.weights.numbers
    matrices = np.array(source.matrix(weights))
    shifts = np.zeros((len(matrices), matrices.shape[2]))
    taps = matrices.shape[1] // parts.shape[1]
    for part, matrix in enumerate(matrices):
        keep = ~parts[part].repeat(taps)
        moments = evidence.moments(layer, part)
        if moments is None:
            matrices[part][~keep] = 0
        else:
            fit, check = moments
            found = (
                checked_refit(matrix, fit, check, keep, _DAMPINGS)
                if thorough
                else refit(matrix, fit, keep, usual_damping(len(matrix), fit))
            )
            matrices[part], shifts[part] = found.weights, found.shift
    _write(layer.node, 1, source.weights(matrices, weights.shape), context)
    if shifts.any() and layer.bias_place is not None:
        _shift(layer, shifts.reshape(-1) * layer.scale, context)


def zero_writer(layer: Layer, removed: Mask, context: Context) -> None:
    """Give a layer no weights and no bias for outputs that go."""
    assert layer.outputs is not None
    gone = removed[layer.outputs]
    if not gone.any():
        return
    blocks = np.array(layer.blocks)
    parts = gone.reshape(layer.groups, -1)
    for block, part in zip(blocks, parts, strict=True):
        block[:, part] = 0
    _write(layer.node, 1, layer.weights_of(blocks), context)
    place = layer.bias_place
    if place is None:
        return
    node, index = place
    array = constant_array(node.inputs[index]) if index < len(node.inputs) else None
    if array is not None and array.shape[-1:] == gone.shape:
        _write(node, index, np.where(gone, 0, array).astype(array.dtype), context)


def _shift(layer: Layer, shift: NDArray[np.float64], context: Context) -> None:
    """Add to the bias, in the bias's own scale."""
    place = layer.bias_place
    assert place is not None
    node, index = place
    if layer.node.op_type == "MatMul":
        array = constant_array(node.inputs[index])
        assert array is not None
        _write(node, index, (array + shift.reshape(-1)).astype(array.dtype), context)
        return
    bias, beta = layer.bias, node.attributes.get("beta")
    assert bias is not None
    if beta is not None:
        Rewriter(context, node).set_attribute(node, "beta", 1.0)
    _write(node, index, bias + shift, context)


def _write(node: ir.Node, index: int, array: NDArray[Any], context: Context) -> None:
    """Let a node have other numbers for a constant, under the old name unless others read it."""
    old = node.inputs[index] if index < len(node.inputs) else None
    like = old if old is not None else node.inputs[1]
    assert like is not None
    assert like.dtype is not None
    stored = np.ascontiguousarray(array.astype(like.dtype.numpy()))
    if old is not None and old.is_initializer() and has_one_use(old):
        old.const_value = ir.Tensor(stored, dtype=like.dtype, name=old.name)
        return
    hint = (old.name if old is not None else None) or f"{node.outputs[0].name}_bias"
    new = Rewriter(context, node).initializer(stored, hint, like=like)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, new)
