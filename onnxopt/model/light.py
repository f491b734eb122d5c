"""Models without their large weights, for what looks at the graph alone."""

from __future__ import annotations

import onnx
import onnx_ir as ir

__all__ = ["light_proto"]


def light_proto(model: ir.Model, limit_bytes: int = 1024) -> onnx.ModelProto:
    """Serialize a model without its large weights, for checks and shape inference.

    Initializers of the main graph larger than ``limit_bytes`` become graph inputs of the same type
    and shape, so that the message is small whatever the size of the model. Documentation and
    metadata are left out. onnx_ir's own serialization of graphs takes twice as long.
    """
    light = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        light.opset_import.add(domain=domain, version=version)
    for function in model.functions.values():
        ir.serde.serialize_function_into(light.functions.add(), function)
    graph = model.graph
    light.graph.name = graph.name or "graph"
    for value in graph.inputs:
        ir.serde.serialize_value_into(light.graph.input.add(), value)
    _add_initializers(light.graph, graph, limit_bytes)
    for node in graph:
        _add_node(light.graph, node)
    for value in graph.outputs:
        ir.serde.serialize_value_into(light.graph.output.add(), value)
    return light


def _add_initializers(proto: onnx.GraphProto, graph: ir.Graph, limit_bytes: int) -> None:
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes <= limit_bytes or tensor.dtype == ir.DataType.STRING:
            stored = proto.initializer.add()
            if isinstance(tensor, ir.ExternalTensor):
                tensor = ir.Tensor(tensor.numpy(), dtype=tensor.dtype)
            ir.serde.serialize_tensor_into(stored, tensor)
            stored.name = value.name or ""
        elif not value.is_graph_input():
            stored = proto.input.add(name=value.name)
            stored.type.tensor_type.elem_type = int(tensor.dtype)
            for size in tensor.shape.numpy():
                stored.type.tensor_type.shape.dim.add(dim_value=size)


def _add_node(proto: onnx.GraphProto, node: ir.Node) -> None:
    stored = proto.node.add(op_type=node.op_type)
    if node.domain:
        stored.domain = node.domain
    if node.overload:
        stored.overload = node.overload
    if node.name:
        stored.name = node.name
    stored.input.extend([value.name or "" if value is not None else "" for value in node.inputs])
    stored.output.extend([value.name or "" for value in node.outputs])
    for attribute in node.attributes.data.values():
        ir.serde.serialize_attribute_into(stored.attribute.add(), attribute)
    for value in node.outputs:
        if value.type is not None and not value.is_graph_output():
            ir.serde.serialize_value_into(proto.value_info.add(), value)
