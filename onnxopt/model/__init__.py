"""Load and save models: the only place that touches model files and protobuf messages.

`load` gives an `onnx_ir.Model` in a normal form that passes can rely on (see there); `save` writes
it, whole or not at all. What the normal form hides is put back by `save`, so that the interface and
the metadata come out as they went in.
"""

from __future__ import annotations

from onnxopt.model.interface import Interface, restore_interface
from onnxopt.model.light import light_proto
from onnxopt.model.loading import bytes_on_disk, from_proto, load, states_no_inner_shape
from onnxopt.model.mapping import let_go_of_pages
from onnxopt.model.output_shapes import prove_shape, proven_shape
from onnxopt.model.protos import META_SPARSE, META_SPARSE_COUNT, external_files
from onnxopt.model.saving import ExternalData, StagedModel, copy, save, stage, to_proto
from onnxopt.model.zipping import zipped_bytes

__all__ = [
    "META_SPARSE",
    "META_SPARSE_COUNT",
    "ExternalData",
    "Interface",
    "StagedModel",
    "bytes_on_disk",
    "copy",
    "external_files",
    "from_proto",
    "let_go_of_pages",
    "light_proto",
    "load",
    "prove_shape",
    "proven_shape",
    "restore_interface",
    "save",
    "stage",
    "states_no_inner_shape",
    "to_proto",
    "zipped_bytes",
]
