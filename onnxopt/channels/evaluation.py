"""Elementwise operators on the constants of channels, as the runtime computes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.analysis.values import constant_array, is_constant
from onnxopt.channels.known import Known, Mask
from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.runtime.worker import shared_worker

__all__ = ["Evaluation", "QuantizedEvaluation", "Requantization"]

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
        proto = self._model()
        node = _copied(self._node, proto)
        node.output.append("result")
        for index, vector in enumerate(vectors):
            node.input.append("" if vector is None else f"operand{index}")
            if vector is not None:
                _store(vector, f"operand{index}", proto)
        return self._run(proto, {}, "disabled")

    def _model(self) -> onnx.ModelProto:
        proto = onnx.ModelProto(ir_version=self._ir_version)
        proto.opset_import.add(domain="", version=self._opset)
        proto.graph.name = "constants"
        proto.graph.output.append(onnx.ValueInfoProto(name="result"))
        return proto

    def _run(
        self, proto: onnx.ModelProto, feed: Mapping[str, Any], level: str
    ) -> NDArray[Any] | None:
        message = proto.SerializeToString()
        try:
            return np.asarray(shared_worker().evaluate(message, feed, _SECONDS, level=level)[0])
        except (RuntimeRefusalError, RuntimeCrashError) as error:
            # Nothing is known of the channels then, so they stay.
            logger.info("%s of constants cannot be computed: %s", self._node.op_type, error)
            return None


class QuantizedEvaluation(Evaluation):
    """Applies an operator between DequantizeLinear and a QuantizeLinear, as by default.

    What is computed comes from QuantizeLinear here too, and what is stored is stored, so that the
    runtime's optimizations see what they see in the model.

    Args:
        node: The QuantizeLinear.
        opset: Version of the standard operators.
        ir_version: IR version of the model.
    """

    def _apply(self, vectors: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
        proto = self._model()
        value = self._node.inputs[0]
        operator = None if value is None else value.producer()
        assert operator is not None
        feed: dict[str, Any] = {}
        read: list[str] = []
        for index, (each, vector) in enumerate(zip(operator.inputs, vectors, strict=True)):
            source = None if each is None else each.producer()
            assert source is not None
            assert vector is not None
            name = f"operand{index}"
            if is_constant(source.inputs[0]):
                _store(vector, name, proto)
            else:
                name = _between("QuantizeLinear", source, name, f"{name}_level", proto)
                feed[f"operand{index}"] = _numbers(vector, source)
                kind = onnx.TensorProto.FLOAT
                proto.graph.input.append(
                    onnx.helper.make_tensor_value_info(f"operand{index}", kind, vector.shape)
                )
            read.append(_between("DequantizeLinear", source, name, f"number{index}", proto))
        result = _copied(operator, proto)
        result.input.extend(read)
        result.output.append("made")
        level = _between("QuantizeLinear", self._node, "made", "level", proto)
        _between("DequantizeLinear", self._node, level, "result", proto)
        numbers = self._run(proto, feed, "all")
        return None if numbers is None else _levels(numbers, self._node)


class Requantization(Evaluation):
    """Rounds sums of products to the integers that QLinearConv or QLinearMatMul puts out.

    A convolution of zeros by zeros, with the sums as its bias, does it as the node does.

    Args:
        node: The node.
        opset: Version of the standard operators.
        ir_version: IR version of the model.
    """

    def levels(self, sums: NDArray[np.int32]) -> NDArray[Any] | None:
        """The integers for sums by output channel; None when the runtime does not compute them."""
        proto = self._model()
        node = proto.graph.node.add(op_type="QLinearConv", output=["result"])
        node.input.append("x")
        stored = {index: constant_array(self._node.inputs[index]) for index in (1, 2, 4, 5, 6, 7)}
        zeros, zero_weights = stored[2], stored[5]
        assert zeros is not None
        assert zero_weights is not None
        shape = (len(sums), 1, 1, 1)
        stored[3] = np.broadcast_to(zero_weights.reshape(-1, 1, 1, 1), shape)
        stored[8] = sums
        for index in range(1, 9):
            array = stored[index]
            assert array is not None
            node.input.append(f"operand{index}")
            single = array.size == 1 and index not in (3, 8)
            _store(array.reshape(()) if single else array, node.input[-1], proto)
        kind = onnx.helper.np_dtype_to_tensor_dtype(zeros.dtype)
        proto.graph.input.append(onnx.helper.make_tensor_value_info("x", kind, (1, 1, 1, 1)))
        return self._run(proto, {"x": zeros.reshape(1, 1, 1, 1)}, "disabled")


def _copied(node: ir.Node, proto: onnx.ModelProto) -> onnx.NodeProto:
    """A node of the same operator and attributes, without inputs and outputs."""
    copied = proto.graph.node.add(op_type=node.op_type)
    for attribute in node.attributes.values():
        ir.serde.serialize_attribute_into(copied.attribute.add(), from_=attribute)
    return copied


def _between(operator: str, node: ir.Node, given: str, made: str, proto: onnx.ModelProto) -> str:
    """Add a QuantizeLinear or DequantizeLinear with the scale and zero point of a node."""
    added = proto.graph.node.add(op_type=operator, output=[made])
    added.input.append(given)
    for index, value in enumerate(node.inputs[1:]):
        array = constant_array(value)
        assert array is not None
        added.input.append(f"{made}_{index}")
        _store(array.reshape(()), added.input[-1], proto)
    return made


def _grid(node: ir.Node) -> tuple[NDArray[Any], NDArray[Any]]:
    scale, zero_point = (constant_array(value) for value in node.inputs[1:])
    assert scale is not None
    assert zero_point is not None
    return scale.reshape(()), zero_point.reshape(())


def _numbers(levels: NDArray[Any], node: ir.Node) -> NDArray[Any]:
    scale, zero_point = _grid(node)
    return np.asarray((levels.astype(np.float32) - zero_point.astype(np.float32)) * scale)


def _levels(numbers: NDArray[Any], node: ir.Node) -> NDArray[Any]:
    scale, zero_point = _grid(node)
    levels = np.rint(numbers.astype(np.float64) / scale) + zero_point.astype(np.float64)
    return np.asarray(levels.astype(zero_point.dtype))


def _store(array: NDArray[Any], name: str, proto: onnx.ModelProto) -> None:
    tensor = ir.serde.serialize_tensor(ir.Tensor(np.array(array, order="C")))
    tensor.name = name
    proto.graph.initializer.append(tensor)
