"""How values travel between products without leaving 8 bits.

From the selectors of ONNX Runtime's CPU provider (``qdq_selector_action_transformer.cc``): what it
fuses with the DequantizeLinear before and the QuantizeLinear behind a node. Softmax, AveragePool
and LeakyRelu have 8-bit kernels too, which are slower than leaving 8 bits for them, and LayerNorm,
GELU and the like have none.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import float_attribute, int_attribute, string_attribute
from onnxopt.analysis.values import constant_array, is_constant
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Refuse

__all__ = ["Follower", "FollowerKind", "follower"]

#: Output has the scale and zero point of the input.
_PASS_THROUGH = frozenset(
    [
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Expand",
        "Gather",
        "Slice",
        "MaxPool",
    ]
)
_MOST_CONSTANTS = 1 << 16


class FollowerKind(enum.Enum):
    """What becomes of scale and zero point."""

    #: They stay as they are: numbers only move.
    PASS = enum.auto()
    #: The output has its own; a kernel computes in 8 bits.
    COMPUTE = enum.auto()
    #: HardSigmoid: an addition whose result saturates.
    HARD_SIGMOID = enum.auto()
    #: HardSwish: the same, times the input.
    HARD_SWISH = enum.auto()
    #: One factor above 0 and one summand for all numbers: another scale and zero point do it.
    AFFINE = enum.auto()


@dataclasses.dataclass(frozen=True)
class Follower:
    """A node that can stay in 8 bits.

    Attributes:
        node: The node.
        kind: What becomes of scale and zero point.
        activations: Positions of the inputs that are activations.
        constants: Positions of constant inputs that have to be in 8 bits too.
        factor: Of an affine step, or the slope of HardSigmoid.
        summand: Of an affine step, or the offset of HardSigmoid.
    """

    node: ir.Node
    kind: FollowerKind
    activations: tuple[int, ...]
    constants: tuple[int, ...] = ()
    factor: float = 1.0
    summand: float = 0.0


def follower(node: ir.Node) -> Follower | None:
    """How a node follows, or None when it leaves 8 bits, or its element types are not known."""
    if not is_standard(node) or not node.inputs or node.inputs[0] is None:
        return None
    if any(value.dtype != ir.DataType.FLOAT for value in node.outputs):
        return None
    try:
        return _follower(node)
    except Refuse:
        return None


def _follower(node: ir.Node) -> Follower | None:
    op_type = node.op_type
    if op_type in _PASS_THROUGH and len(node.outputs) == 1 and not is_constant(node.inputs[0]):
        return Follower(node, FollowerKind.PASS, (0,))
    if op_type == "Resize" and string_attribute(node, "mode", "nearest") == "nearest":
        return Follower(node, FollowerKind.PASS, (0,))
    if op_type in ("GlobalAveragePool", "Sigmoid"):
        return Follower(node, FollowerKind.COMPUTE, (0,))
    if op_type == "Concat":
        positions = tuple(range(len(node.inputs)))
        if any(is_constant(value) for value in node.inputs):
            return None
        return Follower(node, FollowerKind.COMPUTE, positions)
    if op_type == "HardSigmoid":
        slope, offset = float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)
        if not (slope > 0 and 0 < offset <= 1):
            return None
        return Follower(node, FollowerKind.HARD_SIGMOID, (0,), (), slope, offset)
    if op_type == "HardSwish":
        return Follower(node, FollowerKind.HARD_SWISH, (0,), (), 1 / 6, 0.5)
    if op_type == "BatchNormalization":
        return _uniform_batch_norm(node)
    if op_type in ("Add", "Mul"):
        return _binary(node)
    return None


def _binary(node: ir.Node) -> Follower | None:
    constants = tuple(index for index, value in enumerate(node.inputs) if is_constant(value))
    if not constants:
        return Follower(node, FollowerKind.COMPUTE, (0, 1))
    if len(constants) == 2:
        return None
    array = constant_array(node.inputs[constants[0]], limit=_MOST_CONSTANTS)
    if array is None or not np.isfinite(array).all():
        return None
    activations = (1 - constants[0],)
    if array.size == 1 and array.ndim <= 1:
        number = float(array.reshape(()))
        if node.op_type == "Add":
            return Follower(node, FollowerKind.AFFINE, activations, (), 1.0, number)
        if number > 0:
            return Follower(node, FollowerKind.AFFINE, activations, (), number, 0.0)
    return Follower(node, FollowerKind.COMPUTE, activations, constants)


def _uniform_batch_norm(node: ir.Node) -> Follower | None:
    """BatchNormalization that does the same to every channel."""
    if int_attribute(node, "training_mode", 0) or len(node.outputs) != 1:
        return None
    parts = [constant_array(value) for value in node.inputs[1:5]]
    if any(part is None for part in parts):
        return None
    scale, bias, mean, variance = (np.asarray(part, np.float64) for part in parts)
    factor = scale / np.sqrt(variance + float_attribute(node, "epsilon", 1e-5))
    summand = bias - mean * factor
    if not factor.size or np.ptp(factor) > 1e-6 * abs(factor[0]) or not factor[0] > 0:
        return None
    if np.ptp(summand) > 1e-6 * max(abs(summand[0]), abs(factor[0])):
        return None
    return Follower(node, FollowerKind.AFFINE, (0,), (), float(factor[0]), float(summand[0]))
