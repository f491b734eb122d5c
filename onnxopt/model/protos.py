"""Walking over protobuf messages, and what loading leaves in a model for saving to find."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator

import onnx

__all__ = [
    "META_EXTERNAL",
    "META_INTERFACE",
    "META_TRAINING",
    "META_VALUE_INFO",
    "external_locations",
    "graphs",
    "is_external",
    "nodes",
    "tensors",
]

#: Keys of `onnx_ir.Model.meta`, which is never serialized.
META_INTERFACE = "onnxopt.interface"
META_VALUE_INFO = "onnxopt.value_info"
META_EXTERNAL = "onnxopt.external"
META_TRAINING = "onnxopt.training_info"


def graphs(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The main graph and all bodies of control flow, in functions too."""
    found = [proto.graph]
    for function in proto.functions:
        found.extend(bodies(function.node))
    for graph in found:
        found.extend(bodies(graph.node))
    return found


def bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of bodies and functions too."""
    for holder in [*graphs(proto), *proto.functions]:
        yield from holder.node


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All initializers and tensors of attributes; sparse ones are none."""
    for graph in graphs(proto):
        yield from graph.initializer
    for node in nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's data are in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def external_locations(path: pathlib.Path) -> list[str]:
    """Names of the existing files beside a model file that hold its external data."""
    try:
        proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except Exception:  # not a model: it names no files
        return []
    names: dict[str, None] = {}
    for tensor in tensors(proto):
        if is_external(tensor):
            fields: dict[str, str] = {entry.key: entry.value for entry in tensor.external_data}
            names[fields.get("location", "")] = None
    return [name for name in names if name and (path.parent / name).is_file()]
