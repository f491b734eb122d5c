"""ONNX's own sparse form: an initializer with int64 indices, which the runtime makes dense itself.

It takes 8 bytes a number besides the number, so it pays from two thirds of zeros on in float32, and
is far larger than the other codes; but it is the lightest to load, and there is nothing to fold.
Many tools cannot read it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnxopt.model import META_SPARSE

from .builder import initializer_bytes
from .coded import SharedConstants
from .numbers import as_bits

__all__ = ["SparseForm", "sparse_bytes"]

_INDEX_BYTES = 8
#: Bytes of the message around values and indices.
_HEAD_BYTES = 16


@dataclasses.dataclass(eq=False)
class SparseForm:
    """An initializer that can be written as a sparse one.

    Attributes:
        dense: The initializer.
    """

    dense: ir.Value

    code = "sparse-initializer"
    #: Names of what nodes make; there are none.
    made: frozenset[str] = frozenset()
    #: What could be put in instead; there is nothing.
    alone = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Name of the initializer."""
        return (self.dense.name or "",)

    def insert(self, shared: SharedConstants) -> None:
        """Let it be written as a sparse one."""
        self.dense.meta[META_SPARSE] = True

    def remove(self) -> None:
        """Undo `insert`."""
        self.dense.meta.pop(META_SPARSE, None)

    def give_up(self) -> None:
        """Nothing is left to be taken apart."""


def sparse_bytes(value: ir.Value) -> int | None:
    """Bytes that an initializer takes as a sparse one; None where it cannot be one."""
    tensor = value.const_value
    assert tensor is not None
    if len(tensor.shape) == 0:
        return None
    array = tensor.numpy()
    count = int(np.count_nonzero(as_bits(np.asarray(array).reshape(-1))))
    if count == 0:
        return None
    values = initializer_bytes(value.name or "", tensor.dtype, (count,), count * array.itemsize)
    indices = initializer_bytes("", ir.DataType.INT64, (count,), count * _INDEX_BYTES)
    return values + indices + _HEAD_BYTES
