"""Walking over protobuf messages, and what loading leaves in a model for saving to find."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable

import onnx

__all__ = [
    "META_EXTERNAL",
    "META_INTERFACE",
    "META_SPARSE",
    "META_SPARSE_COUNT",
    "META_TRAINING",
    "META_VALUE_INFO",
    "Contents",
    "external_files",
    "external_locations",
    "graphs",
    "is_external",
    "survey",
]

#: Keys of `onnx_ir.Model.meta`, which is never serialized.
META_INTERFACE = "onnxopt.interface"
META_VALUE_INFO = "onnxopt.value_info"
META_EXTERNAL = "onnxopt.external"
META_TRAINING = "onnxopt.training_info"
#: Key of `onnx_ir.Model.meta`: how many tensors the message held in ONNX's sparse form.
META_SPARSE_COUNT = "onnxopt.sparse_count"
#: Key of `onnx_ir.Value.meta`: whether an initializer is to be written as a sparse one.
META_SPARSE = "onnxopt.sparse"

#: Types of attributes that hold neither tensors nor graphs.
_PLAIN_ATTRIBUTES = frozenset(
    (
        *(onnx.AttributeProto.INT, onnx.AttributeProto.INTS),
        *(onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS),
        *(onnx.AttributeProto.STRING, onnx.AttributeProto.STRINGS),
    )
)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a model proto holds, wherever it stands.

    Attributes:
        graphs: The main graph and all bodies of control flow, in functions too; outer ones first.
        tensors: All initializers and tensors of attributes; sparse ones are none.
        sparse: Attributes that hold a sparse tensor, and the node that each belongs to.
    """

    graphs: list[onnx.GraphProto]
    tensors: list[onnx.TensorProto]
    sparse: list[tuple[onnx.NodeProto, onnx.AttributeProto]]


def survey(proto: onnx.ModelProto) -> Contents:
    """Look at all nodes of a model once: with many nodes, looking is what takes the time."""
    contents = Contents([proto.graph], [], [])
    for function in proto.functions:
        _survey_nodes(function.node, contents)
    for graph in contents.graphs:  # grows while it is walked
        contents.tensors.extend(graph.initializer)
        _survey_nodes(graph.node, contents)
    return contents


def _survey_nodes(nodes: Iterable[onnx.NodeProto], contents: Contents) -> None:
    for node in nodes:
        for attribute in node.attribute:
            kind = attribute.type
            if kind in _PLAIN_ATTRIBUTES:
                continue
            if attribute.HasField("t"):
                contents.tensors.append(attribute.t)
            if attribute.HasField("g"):
                contents.graphs.append(attribute.g)
            contents.tensors.extend(attribute.tensors)
            contents.graphs.extend(attribute.graphs)
            if kind == onnx.AttributeProto.SPARSE_TENSOR:
                contents.sparse.append((node, attribute))


def graphs(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The main graph and all bodies of control flow, in functions too."""
    return survey(proto).graphs


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's data are in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def external_locations(tensors: Iterable[onnx.TensorProto]) -> list[str]:
    """Names of the files that hold external data, each once."""
    names: dict[str, None] = {}
    for tensor in tensors:
        if is_external(tensor):
            fields: dict[str, str] = {entry.key: entry.value for entry in tensor.external_data}
            names[fields.get("location", "")] = None
    return [name for name in names if name]


def external_files(path: pathlib.Path) -> list[str]:
    """Names of the existing files beside a model file that hold its external data."""
    try:
        proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except Exception:  # not a model: it names no files
        return []
    names = external_locations(survey(proto).tensors)
    return [name for name in names if (path.parent / name).is_file()]
