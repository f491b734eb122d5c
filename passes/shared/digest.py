"""What a model is, as a short text: by which findings about it are kept."""

from __future__ import annotations

import hashlib
from typing import Any

import onnx_ir as ir

from onnxopt.model import light_proto

__all__ = ["model_digest"]


def model_digest(model: ir.Model) -> str:
    """A hash of the graph; of large weights only what refers to them is in it."""
    proto: Any = light_proto(model)
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
