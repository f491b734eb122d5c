"""Read model files into the normal form that passes rely on."""

from __future__ import annotations

import hashlib
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.errors import ModelError
from onnxopt.model.interface import Interface
from onnxopt.model.protos import (
    META_EXTERNAL,
    META_INTERFACE,
    META_SPARSE_COUNT,
    META_TRAINING,
    META_VALUE_INFO,
    Contents,
    external_files,
    external_locations,
    is_external,
    survey,
)

__all__ = ["bytes_on_disk", "from_proto", "load", "states_no_inner_shape"]

#: The first IR version in which an initializer need not be a graph input.
_IR_VERSION_FREE_INITIALIZERS = 4


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Load a model file.

    The model is in this form: external tensors are memory-mapped when first read; sparse
    initializers and sparse ``Constant`` nodes are dense; from IR version 3 models, initializers are
    taken out of the graph inputs (the runtime treats them as constants there). Initializers that
    can be overridden (also graph inputs, IR version 4 and up) stay graph inputs.

    Raises:
        ModelError: When the file does not exist, is no ONNX model, has a node that reads what
            nothing makes, or names external data that is missing, too short, or outside the model's
            folder.
    """
    path = pathlib.Path(path)
    proto = _read_proto(path)
    base = path.parent.resolve()  # where a link to the model lies, as in ONNX Runtime
    contents = survey(proto)
    _check_external_data(contents.tensors, path.parent)
    try:
        model = _from_proto(proto, contents)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path} has a graph that cannot be read: {_root_cause(error)}") from error
    _check_readers(model, path)
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, base)
    return model


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """Turn a `ModelProto` into a model in the normal form of `load`. The proto is not changed."""
    return _from_proto(proto, survey(proto))


def _from_proto(proto: onnx.ModelProto, contents: Contents) -> ir.Model:
    sparse = sum(node.op_type == "Constant" for node, _ in contents.sparse)
    sparse += sum(len(graph.sparse_initializer) for graph in contents.graphs)
    normal = _normalized(proto, contents)
    if normal is not proto:
        proto, contents = normal, survey(normal)
    model: ir.Model = ir.from_proto(proto)
    model.meta[META_INTERFACE] = Interface.of(model)
    model.meta[META_VALUE_INFO] = frozenset(
        info.name for holder in [*contents.graphs, *proto.functions] for info in holder.value_info
    )
    model.meta[META_EXTERNAL] = tuple(external_locations(contents.tensors))
    model.meta[META_SPARSE_COUNT] = sparse
    model.meta[META_TRAINING] = tuple(proto.training_info)
    return model


def _check_readers(model: ir.Model, path: pathlib.Path) -> None:
    """Check that everything that is read is an input, an initializer, or made by a node."""
    for graph in model.graphs():
        for node in graph:
            for value in node.inputs:
                if value is not None and value.producer() is None and value.graph is None:
                    raise ModelError(
                        f"{path} is not a valid model: node {node.op_type} '{node.name or ''}' "
                        f"reads '{value.name}', which nothing makes"
                    )


def states_no_inner_shape(model: ir.Model) -> bool:
    """Whether the file that a model came from states types of inputs and outputs only."""
    stated: frozenset[str] | None = model.meta.get(META_VALUE_INFO)
    return stated is not None and not stated


def bytes_on_disk(path: str | os.PathLike[str], model: ir.Model | None = None) -> int:
    """Size in bytes of a model file and of the external data files it names.

    Args:
        path: The file.
        model: What `load` made of it, where that is at hand; else the file is read for the names.
    """
    path = pathlib.Path(path)
    names = external_files(path) if model is None else model.meta[META_EXTERNAL]
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in names)


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


def _normalized(proto: onnx.ModelProto, contents: Contents) -> onnx.ModelProto:
    """The proto itself, or a changed copy where onnx_ir would lose or misread something."""
    sparse = contents.sparse or any(graph.sparse_initializer for graph in contents.graphs)
    old = proto.ir_version < _IR_VERSION_FREE_INITIALIZERS
    if not sparse and not old:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copied = survey(copy)
    for graph in copied.graphs:
        for tensor in graph.sparse_initializer:
            graph.initializer.append(_dense(tensor))
        del graph.sparse_initializer[:]
    for node, attribute in copied.sparse:
        if node.op_type == "Constant":
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
    if is_external(sparse.values) or is_external(sparse.indices):
        raise ModelError(f"sparse initializer '{name}' keeps its data in another file")
    try:
        values = onnx.numpy_helper.to_array(sparse.values)
        indices = onnx.numpy_helper.to_array(sparse.indices)
    except Exception as error:  # numpy and protobuf raise what they like
        raise ModelError(f"sparse initializer '{name}' cannot be read: {error}") from error
    where = _positions(name, dims, values, indices)
    if values.dtype.kind in "OSU":
        raise ModelError(f"sparse initializer '{name}' holds text, which has no zero")
    dense = np.zeros(math.prod(dims), dtype=values.dtype)
    dense[where] = values
    return onnx.numpy_helper.from_array(dense.reshape(dims), name)


def _positions(
    name: str,
    dims: tuple[int, ...],
    values: np.ndarray[Any, Any],
    indices: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:
    """Where the values of a sparse tensor stand in it, read row by row; all is checked.

    Raises:
        ModelError: When the parts do not fit one another, an index is outside, or indices are not
            in ascending order without doubles, as ONNX demands.
    """
    if any(size < 0 for size in dims):
        raise ModelError(f"sparse initializer '{name}' has a negative size in {list(dims)}")
    if values.ndim != 1:
        raise ModelError(f"sparse initializer '{name}' has values that are not a vector")
    if indices.dtype.kind not in "iu":
        raise ModelError(f"sparse initializer '{name}' has indices that are not integers")
    shapes = {(values.size,), (values.size, len(dims))}
    if indices.shape not in shapes:
        raise ModelError(
            f"sparse initializer '{name}' has {values.size} values, but indices of shape "
            f"{list(indices.shape)}"
        )
    if not values.size:
        return np.zeros(0, np.int64)
    limits = np.array(dims if indices.ndim == 2 else [math.prod(dims)], np.int64)
    places = indices.astype(np.int64).reshape(values.size, -1)
    if np.any((places < 0) | (places >= limits)):
        raise ModelError(f"sparse initializer '{name}' has indices outside {list(dims)}")
    where = places[:, 0] if indices.ndim == 1 else places @ _strides(dims)
    if np.any(np.diff(where) <= 0):
        raise ModelError(f"sparse initializer '{name}' has indices that are not in ascending order")
    return where


def _strides(dims: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """By how many elements a step along each axis moves, row by row."""
    return np.array([math.prod(dims[axis + 1 :]) for axis in range(len(dims))], np.int64)


def _check_external_data(tensors: Sequence[onnx.TensorProto], folder: pathlib.Path) -> None:
    checked: dict[str, int] = {}
    sums: dict[tuple[str, str], bool] = {}
    for tensor in tensors:
        if not is_external(tensor):
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


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
