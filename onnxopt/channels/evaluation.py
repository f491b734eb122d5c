"""Elementwise operators on the constants of channels, as the runtime computes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.channels.known import Known, Mask
from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.runtime.worker import shared_worker

__all__ = ["Evaluation"]

logger = logging.getLogger(__name__)

#: Operators of one rounding, or none, which numpy does as the runtime does.
_DIRECT: dict[str, Callable[..., NDArray[Any]]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Relu": lambda x: np.maximum(x, np.zeros((), x.dtype)),
    "Identity": lambda x: x,
    "Neg": np.negative,
}
_DIRECT_TYPES = frozenset({"float32", "float64"})
#: An evaluation that takes longer is a hang.
_SECONDS = 20.0


class Evaluation:
    """Applies a node to constants.

    Args:
        node: An elementwise node with one output.
        opset: Version of the standard operators.
        ir_version: IR version of the model.
    """

    def __init__(self, node: ir.Node, opset: int, ir_version: int) -> None:
        self._node = node
        self._opset = opset
        self._ir_version = ir_version

    def at(self, mask: Mask, operands: Sequence[NDArray[Any] | None]) -> Known | None:
        """What the node makes of operands at the channels of the mask.

        Args:
            mask: The channels at which each operand is constant.
            operands: In the shape of the mask or of one element; None for an optional input that
                is not given, or where there is no channel to compute.

        Returns:
            None when there is no channel, or when the runtime does not compute it.
        """
        if not mask.any():
            return None
        # A scalar stays one: bounds of Clip may be nothing else.
        vectors = [each if each is None or each.size == 1 else each[mask] for each in operands]
        result = self._apply(vectors)
        if result is None:
            return None
        values = np.zeros(mask.shape, result.dtype)
        values[mask] = result.reshape(-1)  # of one element where all operands are scalars
        return Known(mask, values)

    def _apply(self, vectors: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
        direct = _DIRECT.get(self._node.op_type)
        given = [each for each in vectors if each is not None]
        if direct is not None and all(each.dtype.name in _DIRECT_TYPES for each in given):
            with np.errstate(all="ignore"):
                return direct(*given)
        try:
            return self._run(vectors)
        except (RuntimeRefusalError, RuntimeCrashError) as error:
            # Nothing is known of the channels then, so they stay.
            logger.info("%s of constants cannot be computed: %s", self._node.op_type, error)
            return None

    def _run(self, vectors: Sequence[NDArray[Any] | None]) -> NDArray[Any]:
        proto = onnx.ModelProto(ir_version=self._ir_version)
        proto.opset_import.add(domain="", version=self._opset)
        proto.graph.name = "constants"
        stored = proto.graph.node.add(op_type=self._node.op_type, output=["result"])
        for index, vector in enumerate(vectors):
            if vector is None:
                stored.input.append("")
                continue
            stored.input.append(f"operand{index}")
            tensor = ir.serde.serialize_tensor(ir.Tensor(np.ascontiguousarray(vector)))
            tensor.name = f"operand{index}"
            proto.graph.initializer.append(tensor)
        for attribute in self._node.attributes.values():
            ir.serde.serialize_attribute_into(stored.attribute.add(), from_=attribute)
        proto.graph.output.append(onnx.ValueInfoProto(name="result"))
        message = proto.SerializeToString()
        return np.asarray(shared_worker().evaluate(message, {}, _SECONDS)[0])
