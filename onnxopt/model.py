"""Load and save models: the only place that touches model files and protobuf messages.

`load` gives an `onnx_ir.Model` in a normal form that passes can rely on (see there); `save` writes
it, whole or not at all. What the normal form hides is put back by `save`, so that the interface and
the metadata come out as they went in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Literal

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.errors import ModelError

__all__ = [
    "ExternalData",
    "Interface",
    "StagedModel",
    "bytes_on_disk",
    "from_proto",
    "light_proto",
    "load",
    "restore_interface",
    "save",
    "stage",
    "to_proto",
]

#: When to write weights beside the model: as the input had it, always, or never.
ExternalData = Literal["auto", "always", "never"]

#: Protobuf refuses messages of 2 GiB; some room is left for the graph around the weights.
_MESSAGE_LIMIT_BYTES = 2**31 - 2**24
#: Smaller tensors stay in the model file even when the others are written beside it.
_EXTERNAL_THRESHOLD_BYTES = 1024
#: Larger tensors are streamed to the file one by one instead of being copied into one message.
_STREAM_THRESHOLD_BYTES = 1 << 16
#: The first IR version in which an initializer need not be a graph input.
_IR_VERSION_FREE_INITIALIZERS = 4
#: Ends of the field tags of onnx.proto that are written by hand when streaming (wire type 2).
_TAG_MODEL_GRAPH, _TAG_GRAPH_INITIALIZER, _TAG_TENSOR_RAW_DATA = b"\x3a", b"\x2a", b"\x4a"

_META_INTERFACE = "onnxopt.interface"
_META_VALUE_INFO = "onnxopt.value_info"
_META_EXTERNAL = "onnxopt.external"
_META_TRAINING = "onnxopt.training_info"


@dataclasses.dataclass(frozen=True)
class Interface:
    """What the world sees of a model, and what no pass may change.

    Attributes:
        inputs: Name and serialized type (element type, symbolic shape) of each graph input.
        outputs: The same of each graph output.
        opset_imports: Opset version by domain.
        metadata: The model's metadata properties.
    """

    inputs: tuple[tuple[str, bytes], ...]
    outputs: tuple[tuple[str, bytes], ...]
    opset_imports: tuple[tuple[str, int], ...]
    metadata: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, model: ir.Model) -> Interface:
        """The interface of a model as it is now."""
        return cls(
            tuple(_signature(value) for value in model.graph.inputs),
            tuple(_signature(value) for value in model.graph.outputs),
            tuple(sorted(model.opset_imports.items())),
            tuple(sorted(model.metadata_props.items())),
        )

    def difference(self, other: Interface) -> str | None:
        """One sentence on the first thing that differs, or None when nothing does."""
        for what in ("inputs", "outputs", "opset_imports", "metadata"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                names = [item[0] for item in mine], [item[0] for item in theirs]
                detail = f"{names[0]} became {names[1]}" if names[0] != names[1] else "their types"
                return f"the model's {what.replace('_', ' ')} changed: {detail}"
        return None


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Load a model file.

    The model is in this form: external tensors are memory-mapped when first read; sparse
    initializers and sparse ``Constant`` nodes are dense; from IR version 3 models, initializers are
    taken out of the graph inputs (the runtime treats them as constants there). Initializers that
    can be overridden (also graph inputs, IR version 4 and up) stay graph inputs.

    Raises:
        ModelError: When the file does not exist, is no ONNX model, or names external data that is
            missing, too short, or outside the model's folder.
    """
    path = pathlib.Path(path)
    proto = _read_proto(path)
    base = path.resolve().parent
    _check_external_data(proto, path.parent)
    try:
        model = from_proto(proto)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path} has a graph that cannot be read: {_root_cause(error)}") from error
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, base)
    return model


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """Turn a `ModelProto` into a model in the normal form of `load`. The proto is not changed."""
    proto = _normalized(proto)
    model: ir.Model = ir.from_proto(proto)
    model.meta[_META_INTERFACE] = Interface.of(model)
    model.meta[_META_VALUE_INFO] = frozenset(_value_info_names(proto))
    model.meta[_META_EXTERNAL] = any(_is_external(tensor) for tensor in _tensors(proto))
    model.meta[_META_TRAINING] = tuple(proto.training_info)
    return model


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Serialize a model of less than 2 GiB; the inverse of `from_proto`."""
    proto = ir.to_proto(model)
    _drop_added_value_info(proto, model)
    proto.training_info.extend(model.meta.get(_META_TRAINING, ()))
    return proto


def light_proto(model: ir.Model, limit_bytes: int = 1024) -> onnx.ModelProto:
    """Serialize a model without its large weights, for checks and shape inference.

    Initializers of the main graph larger than ``limit_bytes`` become graph inputs of the same type
    and shape, so that the message is small whatever the size of the model.
    """
    with _without_initializers(model, limit_bytes) as removed:
        proto = ir.to_proto(model)
    known = {value.name for value in proto.graph.input}
    for value in removed:
        if value.name not in known:
            proto.graph.input.append(ir.serde.serialize_value(value))
    return proto


def restore_interface(model: ir.Model, reference: ir.Model | Interface) -> None:
    """Give graph inputs and outputs the types and shapes of the reference, where names agree.

    Shape inference refines the types of graph outputs while passes work; the model that is given
    back must say what the original said.
    """
    interface = reference if isinstance(reference, Interface) else Interface.of(reference)
    for values, signatures in (
        (model.graph.inputs, interface.inputs),
        (model.graph.outputs, interface.outputs),
    ):
        wanted = dict(signatures)
        for value in values:
            if value.name in wanted:
                info = onnx.ValueInfoProto.FromString(wanted[value.name])
                ir.serde.deserialize_value_info_proto(info, value)


def bytes_on_disk(path: str | os.PathLike[str]) -> int:
    """Size in bytes of a model file and of the external data files it names."""
    path = pathlib.Path(path)
    return path.stat().st_size + sum(
        (path.parent / name).stat().st_size for name in _external_locations(path)
    )


@dataclasses.dataclass
class StagedModel:
    """A model that is written but not yet in its place.

    Attributes:
        path: The model file, in a temporary folder on the target's file system.
        target: Where `commit` puts it.
    """

    path: pathlib.Path
    target: pathlib.Path

    @property
    def bytes(self) -> int:
        """Size of the staged files."""
        return sum(file.stat().st_size for file in self.path.parent.iterdir())

    def commit(self) -> None:
        """Move the files to their place. An old output is replaced only now.

        Raises:
            ModelError: When the files cannot be moved there.
        """
        with _writing(self.target):
            data = [file for file in self.path.parent.iterdir() if file != self.path]
            for file in data:
                os.replace(file, self.target.parent / file.name)
            os.replace(self.path, self.target)
        self.discard()

    def discard(self) -> None:
        """Remove what was staged."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


def stage(
    model: ir.Model, target: str | os.PathLike[str], external_data: ExternalData = "auto"
) -> StagedModel:
    """Write a model to a temporary folder beside its target.

    With external data, weights go to ``<target name>.data`` (or a numbered name if a file of that
    name is there and does not belong to the model that is being replaced).

    Raises:
        ModelError: When the folder is missing, not writable or full, or when the model is over
            2 GiB and ``external_data`` is ``never``.
    """
    target = pathlib.Path(target)
    if target.is_dir():
        raise ModelError(f"{target} is a folder: name a file to write the model to")
    with _writing(target):
        folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    staged = StagedModel(folder / target.name, target)
    try:
        with _writing(target):
            if _wants_external(model, external_data, target):
                _write_external(model, staged.path, _data_name(target))
            else:
                _write_single_file(model, staged.path)
    except BaseException:
        staged.discard()
        raise
    return staged


def save(
    model: ir.Model, target: str | os.PathLike[str], external_data: ExternalData = "auto"
) -> None:
    """Write a model, whole or not at all; see `stage` for the arguments and errors."""
    stage(model, target, external_data).commit()


# Reading


def _read_proto(path: pathlib.Path) -> onnx.ModelProto:
    try:
        proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise ModelError(
            f"{path} is not an ONNX model, or it is truncated ({path.stat().st_size} bytes)"
        ) from error
    if not proto.HasField("graph") or proto.ir_version == 0:
        raise ModelError(f"{path} is not an ONNX model: it holds no graph")
    return proto


def _normalized(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The proto itself, or a changed copy where onnx_ir would lose or misread something."""
    sparse = any(graph.sparse_initializer for graph in _graphs(proto)) or any(
        attribute.type == onnx.AttributeProto.SPARSE_TENSOR
        for node in _nodes(proto)
        for attribute in node.attribute
    )
    old = proto.ir_version < _IR_VERSION_FREE_INITIALIZERS
    if not sparse and not old:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for graph in _graphs(copy):
        for tensor in graph.sparse_initializer:
            graph.initializer.append(_dense(tensor))
        del graph.sparse_initializer[:]
    for node in _nodes(copy):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and node.op_type == "Constant":
                attribute.t.CopyFrom(_dense(attribute.sparse_tensor))
                attribute.ClearField("sparse_tensor")
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
    if old:
        copy.ir_version = _IR_VERSION_FREE_INITIALIZERS
        names = {tensor.name for tensor in copy.graph.initializer}
        inputs = [value for value in copy.graph.input if value.name not in names]
        del copy.graph.input[:]
        copy.graph.input.extend(inputs)
    return copy


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """Densify a sparse tensor (onnx.proto, SparseTensorProto: linear or coordinate indices)."""
    name, dims = sparse.values.name, tuple(sparse.dims)
    if _is_external(sparse.values) or _is_external(sparse.indices):
        raise ModelError(f"sparse initializer '{name}' keeps its data in another file")
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    dense = np.zeros(dims, dtype=values.dtype)
    try:
        if indices.ndim == 2:
            dense[tuple(indices.T)] = values
        else:
            dense.reshape(-1)[indices] = values
    except (IndexError, ValueError) as error:
        raise ModelError(f"sparse initializer '{name}' has indices outside {dims}") from error
    return onnx.TensorProto(
        name=name, data_type=sparse.values.data_type, dims=dims, raw_data=dense.tobytes()
    )


def _check_external_data(proto: onnx.ModelProto, folder: pathlib.Path) -> None:
    checked: dict[str, int] = {}
    sums: dict[tuple[str, str], bool] = {}
    for tensor in _tensors(proto):
        if not _is_external(tensor):
            continue
        fields = {entry.key: entry.value for entry in tensor.external_data}
        location = fields.get("location", "")
        if location not in checked:
            checked[location] = _external_file_size(folder, location, tensor.name)
        expected = _tensor_bytes(tensor)
        try:
            offset = int(fields.get("offset", 0))
            length = int(fields.get("length", expected))
        except ValueError as error:
            raise ModelError(
                f"tensor '{tensor.name}' has an offset or length that is not a number"
            ) from error
        if length != expected or offset < 0:
            raise ModelError(
                f"tensor '{tensor.name}' needs {expected} bytes but the model says that "
                f"{length} bytes at {offset} of '{location}' hold it"
            )
        if offset + length > checked[location]:
            raise ModelError(
                f"external data file '{location}' is too short: tensor '{tensor.name}' ends at "
                f"byte {offset + length}, the file has {checked[location]}"
            )
        if checksum := fields.get("checksum"):
            key = (location, checksum.lower())
            if key not in sums:
                with open(folder / location, "rb") as file:
                    sums[key] = hashlib.file_digest(file, "sha1").hexdigest() == key[1]
            if not sums[key]:
                raise ModelError(
                    f"external data file '{location}' does not match the checksum in the model"
                )


def _external_file_size(folder: pathlib.Path, location: str, tensor: str) -> int:
    if not location:
        raise ModelError(f"tensor '{tensor}' is external but names no file")
    inside = folder.resolve()
    path = folder / location
    if os.path.isabs(location) or ".." in pathlib.PurePath(location).parts:
        raise ModelError(
            f"tensor '{tensor}' asks for '{location}', which is outside the model's folder; "
            "move the data beside the model"
        )
    if not path.resolve().is_relative_to(inside):
        raise ModelError(
            f"external data file '{location}' is a link that leaves the model's folder; copy the "
            "data beside the model"
        )
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ModelError(
            f"external data file '{location}' is missing (looked in {folder or '.'})"
        ) from error
    if status.st_nlink > 1:
        raise ModelError(
            f"external data file '{location}' has several hard links and may be a file from "
            "outside the model's folder; copy the data"
        )
    return status.st_size


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    bits = ir.DataType(tensor.data_type).bitwidth
    return (int(np.prod(tensor.dims, dtype=np.int64)) * bits + 7) // 8


# Writing


def _wants_external(model: ir.Model, choice: ExternalData, target: pathlib.Path) -> bool:
    total = sum(_nbytes(value) for graph in model.graphs() for value in graph.initializers.values())
    if choice == "never" and total > _MESSAGE_LIMIT_BYTES:
        raise ModelError(
            f"{target} would be {total / 2**30:.1f} GiB, and a single file ends at 2 GiB: allow "
            "external data"
        )
    if choice == "auto":
        return bool(model.meta.get(_META_EXTERNAL, False)) or total > _MESSAGE_LIMIT_BYTES
    return choice == "always"


def _write_external(model: ir.Model, path: pathlib.Path, data_name: str) -> None:
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    tensors = [value.const_value for value in values]
    try:
        ir.external_data.unload_from_model(
            model, path.parent, data_name, size_threshold_bytes=_EXTERNAL_THRESHOLD_BYTES
        )
        with _attributes_in_memory(model):
            message = to_proto(model).SerializeToString()
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor
    with open(path, "wb") as file:
        file.write(message)
        _to_disk(file)


def _write_single_file(model: ir.Model, path: pathlib.Path) -> None:
    """Write weights one after the other, so that no second copy of them is ever in memory.

    Protobuf lets the entries of a repeated field stand anywhere in a message, so the large
    initializers follow the graph's other fields.
    """
    with (
        _without_initializers(model, _STREAM_THRESHOLD_BYTES) as streamed,
        _attributes_in_memory(model),
    ):
        proto = to_proto(model)
    proto.graph.value_info.extend(_value_info_of(model, streamed))
    heads = [_tensor_head(value) for value in streamed]
    graph = proto.graph.SerializeToString()
    sizes = [len(head) + _nbytes(value) for head, value in zip(heads, streamed, strict=True)]
    total = len(graph) + sum(
        len(_TAG_GRAPH_INITIALIZER) + len(_varint(size)) + size for size in sizes
    )
    proto.ClearField("graph")
    with open(path, "wb") as file:
        file.write(proto.SerializeToString())
        file.write(_TAG_MODEL_GRAPH + _varint(total) + graph)
        for head, value, size in zip(heads, streamed, sizes, strict=True):
            file.write(_TAG_GRAPH_INITIALIZER + _varint(size) + head)
            assert value.const_value is not None
            file.write(value.const_value.tobytes())
        _to_disk(file)


def _tensor_head(value: ir.Value) -> bytes:
    """All of a TensorProto up to its raw bytes."""
    tensor = value.const_value
    assert tensor is not None
    head = onnx.TensorProto(name=value.name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    if tensor.doc_string:
        head.doc_string = tensor.doc_string
    for key, text in tensor.metadata_props.items():
        head.metadata_props.add(key=key, value=text)
    start: bytes = head.SerializeToString()
    return start + _TAG_TENSOR_RAW_DATA + _varint(_nbytes(value))


def _varint(number: int) -> bytes:
    """Base-128 varint (Protocol Buffers encoding guide)."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append((number & 0x7F) | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _data_name(target: pathlib.Path) -> str:
    """A name for the data file that is free, or belongs to the model that is being replaced."""
    ours = set(_external_locations(target)) if target.is_file() else set()
    name = f"{target.name}.data"
    number = 0
    while (target.parent / name).exists() and name not in ours:
        number += 1
        name = f"{target.name}.{number}.data"
    return name


@contextlib.contextmanager
def _writing(target: pathlib.Path) -> Iterator[None]:
    """Say what went wrong with the target in one sentence."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EACCES: "permission denied",
            errno.EPERM: "permission denied",
            errno.EROFS: "the file system is read-only",
            errno.ENOENT: f"the folder {target.parent} does not exist",
            errno.ENOTDIR: f"{target.parent} is not a folder",
        }
        reason = reasons.get(error.errno or 0, str(error))
        raise ModelError(f"cannot write {target}: {reason}") from error


def _to_disk(file: BinaryIO) -> None:
    """Make sure that a full disk is noticed before the old output is replaced."""
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _without_initializers(model: ir.Model, limit_bytes: int) -> Iterator[list[ir.Value]]:
    """Take large initializers out of the main graph for a while; their order is kept."""
    initializers = model.graph.initializers
    everything = list(initializers.values())
    large = [value for value in everything if _nbytes(value) > limit_bytes and _is_plain(value)]
    if not large:
        yield []
        return
    for value in large:
        assert value.name is not None
        initializers.pop(value.name)
    try:
        yield large
    finally:
        for value in everything:
            initializers.pop(value.name or "", None)
        for value in everything:
            initializers.add(value)


@contextlib.contextmanager
def _attributes_in_memory(model: ir.Model) -> Iterator[None]:
    """Write tensors of attributes into the model file, where they came from external data."""
    changed: list[tuple[ir.Node, ir.Attr]] = []
    for graph in model.graphs():
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
                    continue
                tensor = attribute.as_tensor()
                if isinstance(tensor, ir.ExternalTensor):
                    changed.append((node, attribute))
                    loaded = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
                    node.attributes[name] = ir.AttrTensor(name, loaded)
    try:
        yield
    finally:
        for node, attribute in changed:
            node.attributes[attribute.name] = attribute


def _nbytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _is_plain(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.dtype != ir.DataType.STRING


# Messages


def _signature(value: ir.Value) -> tuple[str, bytes]:
    return value.name or "", ir.serde.serialize_value(value).SerializeToString(deterministic=True)


def _value_info_of(model: ir.Model, values: Sequence[ir.Value]) -> list[onnx.ValueInfoProto]:
    wanted = model.meta.get(_META_VALUE_INFO)
    if wanted is None:
        return []
    return [
        ir.serde.serialize_value(value)
        for value in values
        if value.name in wanted and not value.is_graph_input()
    ]


def _drop_added_value_info(proto: onnx.ModelProto, model: ir.Model) -> None:
    """Keep types of inner values only where the file had them, so that it does not grow."""
    wanted = model.meta.get(_META_VALUE_INFO)
    if wanted is None:
        return
    for holder in [*_graphs(proto), *proto.functions]:
        if all(info.name in wanted for info in holder.value_info):
            continue
        kept = [
            info
            for info in holder.value_info
            if info.name in wanted or info.metadata_props or info.doc_string
        ]
        del holder.value_info[:]
        holder.value_info.extend(kept)


def _value_info_names(proto: onnx.ModelProto) -> Iterator[str]:
    for holder in [*_graphs(proto), *proto.functions]:
        for info in holder.value_info:
            yield info.name


def _graphs(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The main graph and all bodies of control flow, in functions too."""
    found = [proto.graph]
    for function in proto.functions:
        found.extend(_bodies(function.node))
    for graph in found:
        found.extend(_bodies(graph.node))
    return found


def _bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for holder in [*_graphs(proto), *proto.functions]:
        yield from holder.node


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(proto):
        yield from graph.initializer
    for node in _nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _external_locations(path: pathlib.Path) -> list[str]:
    try:
        proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except Exception:  # not a model: it names no files
        return []
    names: dict[str, None] = {}
    for tensor in _tensors(proto):
        if _is_external(tensor):
            fields: dict[str, Any] = {entry.key: entry.value for entry in tensor.external_data}
            names[fields.get("location", "")] = None
    return [name for name in names if name and (path.parent / name).is_file()]


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
