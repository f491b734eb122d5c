"""A small model of some nodes of a model, to infer their types or to run them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import onnx
import onnx_ir as ir

__all__ = ["Region", "TensorFacts", "inputs_of", "outputs_of", "region_proto"]


@dataclasses.dataclass(frozen=True)
class TensorFacts:
    """What is known of a tensor before it is computed.

    Attributes:
        dtype: Its element type.
        shape: Its shape, or None when a dimension or the rank is not known.
    """

    dtype: ir.DataType
    shape: tuple[int, ...] | None

    @property
    def nbytes(self) -> int | None:
        """Its size in bytes, or None when the shape is not known."""
        if self.shape is None or self.dtype == ir.DataType.STRING:
            return None
        return (math.prod(self.shape) * self.dtype.bitwidth + 7) // 8

    def fit(self, tensor: ir.TensorProtocol) -> bool:
        """Whether a tensor is what these facts say."""
        shape = tuple(tensor.shape.numpy())
        return tensor.dtype == self.dtype and self.shape in (None, shape)


@dataclasses.dataclass(frozen=True)
class Region:
    """Some nodes as a model of their own.

    Attributes:
        proto: The model.
        names: Its name for each value.
        fed: The value behind each graph input.
    """

    proto: onnx.ModelProto
    names: Mapping[ir.Value, str]
    fed: Mapping[str, ir.Value]


def inputs_of(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """What nodes read, without optional inputs that are left out."""
    return [value for node in nodes for value in node.inputs if value is not None]


def outputs_of(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """What nodes make, without optional outputs that are left out."""
    return [value for node in nodes for value in node.outputs if value.name]


def region_proto(
    nodes: Sequence[ir.Node],
    known: Mapping[ir.Value, ir.TensorProtocol],
    opset: int,
    ir_version: int,
    initializer_bytes: int,
    outputs: Sequence[ir.Value] = (),
) -> Region:
    """Make a model of nodes of the standard domain, whatever graphs they stand in.

    Values get new names, since two bodies may use the same name for different things.

    Args:
        nodes: In topological order.
        known: Values that no node of these makes.
        opset: Version of the standard domain.
        ir_version: IR version of the model that the nodes are of.
        initializer_bytes: Known values up to this size become initializers, others graph inputs.
        outputs: Values that become graph outputs.
    """
    proto = onnx.ModelProto(ir_version=ir_version)
    proto.opset_import.add(domain="", version=opset)
    proto.graph.name = "region"
    names: dict[ir.Value, str] = {}
    fed: dict[str, ir.Value] = {}
    for value in inputs_of(nodes):
        if value in names or value not in known:
            continue
        name = names[value] = f"v{len(names)}"
        tensor = known[value]
        if tensor.nbytes <= initializer_bytes:
            stored = ir.serde.serialize_tensor(tensor)
            stored.name = name
            proto.graph.initializer.append(stored)
        else:
            fed[name] = value
            shape = tensor.shape.numpy()
            info = onnx.helper.make_tensor_value_info(name, int(tensor.dtype), shape)
            proto.graph.input.append(info)
    for value in outputs_of(nodes):
        names[value] = f"v{len(names)}"
    for node in nodes:
        stored_node = proto.graph.node.add(op_type=node.op_type)
        stored_node.input.extend("" if value is None else names[value] for value in node.inputs)
        stored_node.output.extend(names.get(value, "") for value in node.outputs)
        for attribute in node.attributes.values():
            ir.serde.serialize_attribute_into(stored_node.attribute.add(), from_=attribute)
    proto.graph.output.extend(onnx.ValueInfoProto(name=names[value]) for value in outputs)
    return Region(proto, names, fed)
