"""Decoders as small graphs: built, named, counted in bytes, and not yet part of any model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Hashable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

__all__ = ["Decoder", "DecoderBuilder", "array_key", "initializer_bytes", "part_number"]

Array = np.ndarray[Any, Any]

#: Base of the numbers in names.
_BASE = 36
#: From here on the sizes of pieces are an input of Split, and no attribute.
_SPLIT_INPUT_OPSET = 13

#: What names in decoders look like; see `part_number`.
_NAME = re.compile(r"cw(\d+)\.[0-9a-z]+")


def part_number(name: str | None) -> int:
    """The number of the decoder that a name in it was made from; -1 if it is another's name."""
    match = _NAME.fullmatch(name or "")
    return -1 if match is None else int(match[1])


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """A graph that makes one tensor, or several, of stored parts.

    Attributes:
        code: Name of the code, such as ``bitmask+palette``.
        nodes: In topological order.
        parts: Initializers of its own.
        shared: Small constants that decoders have in common, by what they hold.
        outputs: The decoded tensors.
    """

    code: str
    nodes: tuple[ir.Node, ...]
    parts: tuple[ir.Value, ...]
    shared: dict[Hashable, ir.Value]
    outputs: tuple[ir.Value, ...]

    @property
    def tensors(self) -> dict[ir.Value, ir.TensorProtocol]:
        """What all constants hold, its own and the shared ones."""
        values = (*self.parts, *self.shared.values())
        return {value: value.const_value for value in values if value.const_value is not None}

    def nbytes(self, present: Collection[Hashable] = ()) -> int:
        """Bytes that it takes in a model file.

        Args:
            present: Keys of shared constants that the file has already.
        """
        stored = [*self.parts, *(v for key, v in self.shared.items() if key not in present)]
        return sum(map(_node_bytes, self.nodes)) + sum(map(_value_bytes, stored))


class DecoderBuilder:
    """Collects the nodes and parts of one decoder.

    Args:
        number: Tells the decoders of a model apart; part of the names it gives.
    """

    def __init__(self, number: int) -> None:
        self._stem = f"cw{number}."
        self._count = 0
        self._nodes: list[ir.Node] = []
        self._parts: list[ir.Value] = []
        self._shared: dict[Hashable, ir.Value] = {}

    def store(self, array: Array) -> ir.Value:
        """A part of this decoder's own."""
        value = _initializer(self._name(), array)
        self._parts.append(value)
        return value

    def share(self, array: Array) -> ir.Value:
        """A small constant that a model holds once for all its decoders."""
        key = array_key(array)
        if key not in self._shared:
            self._shared[key] = _initializer(self._name(), array)
        return self._shared[key]

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """A node with one output. Nodes have no name: it would only take room."""
        (output,) = self.ops(1, op_type, *inputs, **attributes)
        return output

    def ops(
        self, count: int, op_type: str, *inputs: ir.Value, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """A node with so many outputs."""
        node = ir.node(op_type, inputs, attributes, num_outputs=count, name="")
        for output in node.outputs:
            output.name = self._name()
        self._nodes.append(node)
        return tuple(node.outputs)

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Give a value a static shape."""
        return self.op("Reshape", value, self.share(np.array(shape, np.int64)))

    def first(self, value: ir.Value, count: int) -> ir.Value:
        """The first elements of a vector."""
        ends = self.share(np.array([count], np.int64))
        return self.op("Slice", value, self.share(np.zeros(1, np.int64)), ends)

    def split(self, value: ir.Value, sizes: Sequence[int], opset: int) -> tuple[ir.Value, ...]:
        """Pieces of a vector."""
        if opset < _SPLIT_INPUT_OPSET:
            return self.ops(len(sizes), "Split", value, split=list(sizes))
        return self.ops(len(sizes), "Split", value, self.store(np.array(sizes, np.int64)))

    def cumulate(self, value: ir.Value) -> ir.Value:
        """Running sums of an int32 vector."""
        return self.op("CumSum", value, self.share(np.array(0, np.int32)))

    def filled(self, shape: Sequence[int], element: Array) -> ir.Value:
        """A tensor with one element, given as an array of shape (1,), everywhere.

        The shape is a part of its own, so that the decoder of a constant tensor has one.
        """
        tensor = ir.tensor(element.reshape(1))
        return self.op("ConstantOfShape", self.store(np.array(shape, np.int64)), value=tensor)

    def scatter(self, size: int, background: Array, where: ir.Value, what: ir.Value) -> ir.Value:
        """A vector of a background, with other elements at some indices."""
        return self.op("ScatterElements", self.filled((size,), background), where, what, axis=0)

    def finish(self, code: str, *outputs: ir.Value) -> Decoder:
        """The decoder, once its last node is there."""
        return Decoder(code, tuple(self._nodes), tuple(self._parts), self._shared, outputs)

    def _name(self) -> str:
        self._count += 1
        return self._stem + np.base_repr(self._count - 1, _BASE).lower()


def array_key(array: Array) -> Hashable:
    """A key under which equal arrays are found."""
    return array.dtype.str, array.shape, array.tobytes()


def initializer_bytes(name: str, dtype: ir.DataType, shape: Sequence[int], nbytes: int) -> int:
    """Bytes of an initializer in a model file: numbers, tags, lengths, name, type, dimensions."""
    head: int = onnx.TensorProto(name=name, data_type=int(dtype), dims=shape).ByteSize()
    return _field_bytes(head + _field_bytes(nbytes))


def _initializer(name: str, array: Array) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor)
    value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
    return value


def _value_bytes(value: ir.Value) -> int:
    tensor = value.const_value
    assert tensor is not None
    return initializer_bytes(
        value.name or "", tensor.dtype, tensor.shape.numpy(), int(tensor.nbytes)
    )


def _node_bytes(node: ir.Node) -> int:
    return _field_bytes(int(ir.serde.serialize_node(node).ByteSize()))


def _field_bytes(length: int) -> int:
    """Bytes of a length-delimited protobuf field whose number is below 16."""
    return 1 + max(1, -(-length.bit_length() // 7)) + length
