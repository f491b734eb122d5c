"""Weights that are mapped from a file, and the memory that a look at them takes."""

from __future__ import annotations

import mmap

import onnx_ir as ir

__all__ = ["let_go_of_pages"]

_FORGET = getattr(mmap, "MADV_DONTNEED", None)


def let_go_of_pages(tensor: ir.TensorProtocol | None) -> None:
    """Have the system take back the pages of a mapped tensor; whoever reads it maps them again.

    A glance at a few bytes can map megabytes around them, and a pass that glances at each weight of
    a large model would hold all of it in memory, beside the process that runs it.
    """
    if isinstance(tensor, ir.ExternalTensor) and tensor.raw is not None and _FORGET is not None:
        tensor.raw.madvise(_FORGET)
