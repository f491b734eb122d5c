"""LSTM with 8-bit weights, whose inputs and states are quantized as it runs.

The kernel multiplies as MatMul does, inputs and states by [in, gates] weights, so the same weights
are safe from saturation (see `weights`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxopt.regions import Recurrence

from .editing import Editor, called_after
from .weights import Weights, quantize_weights

__all__ = ["RecurrentWeights", "lower_recurrence", "quantize_recurrence"]

Array = np.ndarray[Any, Any]

_DOMAIN = "com.microsoft"
#: Inputs that LSTM and its 8-bit kernel have in common.
_COMMON = 8


@dataclasses.dataclass(frozen=True)
class RecurrentWeights:
    """Weights of a recurrent layer, by direction.

    Attributes:
        inputs: [inputs, gates] each.
        states: [units, gates] each.
    """

    inputs: tuple[Weights, ...]
    states: tuple[Weights, ...]


def quantize_recurrence(layer: Recurrence, pair_limit: int | None) -> RecurrentWeights:
    """Round the weights of a recurrent layer, with a scale for each row of a gate.

    Args:
        layer: The layer.
        pair_limit: What two added weights of one sign may add up to; None for no limit.
    """
    inputs, states = (
        tuple(quantize_weights(matrix, 1, pair_limit) for matrix in matrices)
        for matrices in (layer.inputs, layer.states)
    )
    return RecurrentWeights(inputs, states)


def lower_recurrence(editor: Editor, layer: Recurrence, weights: RecurrentWeights) -> None:
    """Let an LSTM be computed by the 8-bit kernel, in place."""
    node, name = layer.node, layer.key
    before = [value for value in node.inputs[1:3] if value is not None]
    inputs, states = weights.inputs, weights.states
    node.resize_inputs(_COMMON + 4)
    node.replace_input_with(
        1, editor.constant(_numbers(inputs), called_after(name, "input_weights"))
    )
    node.replace_input_with(
        2, editor.constant(_numbers(states), called_after(name, "state_weights"))
    )
    for at, word, found in ((_COMMON, "input", inputs), (_COMMON + 2, "state", states)):
        scales = np.stack([each.scales for each in found]).astype(np.float32)
        zeros = np.zeros(scales.shape, np.int8)
        node.replace_input_with(at, editor.constant(scales, called_after(name, f"{word}_scales")))
        node.replace_input_with(
            at + 1, editor.constant(zeros, called_after(name, f"{word}_zero_points"))
        )
    node.attributes.pop("layout", None)  # it is 0, the only one that the kernel has
    node.op_type, node.domain = f"DynamicQuantize{node.op_type}", _DOMAIN
    editor.model.opset_imports.setdefault(_DOMAIN, 1)
    editor.remove_unread([made for value in before if (made := value.producer()) is not None])


def _numbers(weights: Sequence[Weights]) -> Array:
    """int8 [directions, in, gates]."""
    return np.stack([each.numbers for each in weights])
