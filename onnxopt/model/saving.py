"""Write models, whole or not at all, without a second copy of the weights in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.errors import ModelError
from onnxopt.model.loading import load
from onnxopt.model.protos import (
    META_EXTERNAL,
    META_SPARSE,
    META_TRAINING,
    META_VALUE_INFO,
    external_files,
    graphs,
)

__all__ = ["ExternalData", "StagedModel", "copy", "save", "stage", "to_proto"]

#: When to write weights beside the model: as the input had it, always, or never.
ExternalData = Literal["auto", "always", "never"]

#: Protobuf refuses messages of 2 GiB; some room is left for the graph around the weights.
_MESSAGE_LIMIT_BYTES = 2**31 - 2**24
#: Smaller tensors stay in the model file even when the others are written beside it.
_EXTERNAL_THRESHOLD_BYTES = 1024
#: Larger tensors are streamed to the file one by one instead of being copied into one message.
_STREAM_THRESHOLD_BYTES = 1 << 16
#: Ends of the field tags of onnx.proto that are written by hand when streaming (wire type 2).
_TAG_MODEL_GRAPH, _TAG_GRAPH_INITIALIZER, _TAG_TENSOR_RAW_DATA = b"\x3a", b"\x2a", b"\x4a"


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Serialize a model of less than 2 GiB; the inverse of `from_proto`."""
    proto = ir.to_proto(model)
    _drop_added_value_info(proto, model)
    for imported in proto.opset_import:
        if not imported.domain:
            imported.ClearField("domain")  # two bytes that say nothing
    proto.training_info.extend(model.meta.get(META_TRAINING, ()))
    _write_sparse(proto, model)
    return proto


def _write_sparse(proto: onnx.ModelProto, model: ir.Model) -> None:
    """Turn initializers that are marked into sparse ones."""
    # No two marked ones have the same name: the runtime does not take shadowed names.
    marked = {
        value.name
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.meta.get(META_SPARSE, False)
    }
    for graph in graphs(proto) if marked else ():
        dense = [tensor for tensor in graph.initializer if tensor.name in marked]
        for tensor in dense:
            graph.sparse_initializer.append(_sparse(tensor))
            graph.initializer.remove(tensor)


def _sparse(tensor: onnx.TensorProto) -> onnx.SparseTensorProto:
    """A tensor as a sparse one, with int64 indices into its elements; -0.0 is not left out."""
    flat = onnx.numpy_helper.to_array(tensor).reshape(-1)
    where = np.flatnonzero(flat.view(f"u{flat.itemsize}")).astype(np.int64)
    return onnx.helper.make_sparse_tensor(
        onnx.numpy_helper.from_array(flat[where], tensor.name),
        onnx.numpy_helper.from_array(where, ""),
        tensor.dims,
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
        try:
            with _writing(self.target):
                self._move()
        finally:
            self.discard()

    def _move(self) -> None:
        """Move the data, then the model; if that fails, put data of the old output back."""
        moved: list[pathlib.Path] = []
        kept = pathlib.Path(tempfile.mkdtemp(dir=self.path.parent))
        try:
            for file in [each for each in self.path.parent.iterdir() if each.is_file()]:
                if file != self.path:
                    place = self.target.parent / file.name
                    if place.exists():
                        os.replace(place, kept / file.name)
                    moved.append(place)
                    os.replace(file, place)
            os.replace(self.path, self.target)
        except BaseException:
            for place in moved:
                place.unlink(missing_ok=True)
            for old in kept.iterdir():
                os.replace(old, self.target.parent / old.name)
            raise

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
    with _staged(target) as staged:
        if _wants_external(model, external_data, target):
            _write_external(model, staged.path, _data_name(target))
        else:
            _write_single_file(model, staged.path)
    return staged


def save(
    model: ir.Model, target: str | os.PathLike[str], external_data: ExternalData = "auto"
) -> None:
    """Write a model, whole or not at all; see `stage` for the arguments and errors."""
    stage(model, target, external_data).commit()


def copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write what a model file holds to another place, whole or not at all.

    A single file is copied byte by byte; external data are written to a file of the copy's own.

    Raises:
        ModelError: When the source cannot be read, or the target cannot be written.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    if external_files(source):
        save(load(source), target)
        return
    with _staged(target) as staged:
        shutil.copyfile(source, staged.path)
    staged.commit()


@contextlib.contextmanager
def _staged(target: pathlib.Path) -> Iterator[StagedModel]:
    """A temporary folder beside a target for the block to write to; removed if that fails.

    Raises:
        ModelError: When the folder is missing, not writable or full.
    """
    if target.is_dir():
        raise ModelError(f"{target} is a folder: name a file to write the model to")
    with _writing(target):
        folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    staged = StagedModel(folder / target.name, target)
    try:
        with _writing(target):
            yield staged
    except BaseException:
        staged.discard()
        raise


def _wants_external(model: ir.Model, choice: ExternalData, target: pathlib.Path) -> bool:
    total = sum(_nbytes(value) for graph in model.graphs() for value in graph.initializers.values())
    if choice == "never" and total > _MESSAGE_LIMIT_BYTES:
        raise ModelError(
            f"{target} would be {total / 2**30:.1f} GiB, and a single file ends at 2 GiB: allow "
            "external data"
        )
    if choice == "auto":
        return bool(model.meta.get(META_EXTERNAL)) or total > _MESSAGE_LIMIT_BYTES
    return choice == "always"


def _write_external(model: ir.Model, path: pathlib.Path, data_name: str) -> None:
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    tensors = [value.const_value for value in values]
    inside = [
        (value, tensor)
        for value, tensor in zip(values, tensors, strict=True)
        if tensor is not None and not _is_plain(value)
    ]
    try:
        for value, _ in inside:  # external data cannot hold them
            value.const_value = None
        ir.external_data.unload_from_model(
            model, path.parent, data_name, size_threshold_bytes=_EXTERNAL_THRESHOLD_BYTES
        )
        for value, tensor in inside:
            value.const_value = (
                _in_memory(tensor) if isinstance(tensor, ir.ExternalTensor) else tensor
            )
        with _attributes_in_memory(model):
            message = to_proto(model).SerializeToString()
    finally:
        for value, before in zip(values, tensors, strict=True):
            value.const_value = before
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
        _initializers_in_memory(model),
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
            content = value.const_value.tobytes()
            if len(content) != _nbytes(value):
                raise ModelError(
                    f"tensor '{value.name}' needs {_nbytes(value)} bytes and has {len(content)}"
                )
            file.write(content)
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
    ours = set(external_files(target)) if target.is_file() else set()
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
def _initializers_in_memory(model: ir.Model) -> Iterator[None]:
    """Write initializers into the model file, where they came from external data."""
    changed: list[tuple[ir.Value, ir.ExternalTensor]] = []
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                changed.append((value, tensor))
                value.const_value = _in_memory(tensor)
    try:
        yield
    finally:
        for value, external in changed:
            value.const_value = external


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
                    node.attributes[name] = ir.AttrTensor(name, _in_memory(tensor))
    try:
        yield
    finally:
        for node, attribute in changed:
            node.attributes[attribute.name] = attribute


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    loaded = ir.Tensor(
        tensor.numpy(), dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string
    )
    loaded.metadata_props.update(tensor.metadata_props)
    return loaded


def _nbytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _is_plain(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or value.meta.get(META_SPARSE, False):
        return False
    return tensor.dtype != ir.DataType.STRING


def _value_info_of(model: ir.Model, values: Sequence[ir.Value]) -> list[onnx.ValueInfoProto]:
    wanted = model.meta.get(META_VALUE_INFO)
    if wanted is None:
        return []
    return [
        ir.serde.serialize_value(value)
        for value in values
        if value.name in wanted and not value.is_graph_input()
    ]


def _drop_added_value_info(proto: onnx.ModelProto, model: ir.Model) -> None:
    """Keep types of inner values only where the file had them, so that it does not grow."""
    wanted = model.meta.get(META_VALUE_INFO)
    if wanted is None:
        return
    for holder in [*graphs(proto), *proto.functions]:
        if all(info.name in wanted for info in holder.value_info):
            continue
        kept = [
            info
            for info in holder.value_info
            if info.name in wanted or info.metadata_props or info.doc_string
        ]
        del holder.value_info[:]
        holder.value_info.extend(kept)
