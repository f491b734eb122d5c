"""Numbers stored in a narrower type that holds each of them exactly, widened by ``Cast``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from .builder import Array, DecoderBuilder
from .numbers import Numbers, as_bits

__all__ = ["narrow"]

_INTEGERS = (np.uint8, np.int8, np.uint16, np.int16, np.int32)
#: Types to try for each, the shortest first.
_NARROWER: Mapping[np.dtype, tuple[type, ...]] = {
    np.dtype(np.float64): (np.int8, np.float16, ml_dtypes.bfloat16, np.float32),
    np.dtype(np.float32): (np.int8, np.uint8, np.float16, ml_dtypes.bfloat16),
    np.dtype(np.float16): (np.int8, np.uint8),
    np.dtype(np.int64): _INTEGERS,
    np.dtype(np.int32): _INTEGERS,
    np.dtype(np.uint64): (np.uint8, np.uint16, np.uint32),
    np.dtype(np.uint32): (np.uint8, np.uint16),
}
#: Before all numbers are converted, so many are.
_SAMPLE = 4096
#: Bytes of the node.
_NODE_BYTES = 40


def narrow(numbers: Array) -> Numbers | None:
    """Store a vector in the shortest type that gives it back bit by bit, if there is one."""
    wide = numbers.dtype
    for narrower in _NARROWER.get(wide, ()):
        if _holds(narrower, numbers[:: max(1, numbers.size // _SAMPLE)]) and _holds(
            narrower, numbers
        ):
            return _widened(numbers.astype(narrower), ir.DataType.from_numpy(wide))
    return None


def _holds(narrower: type, numbers: Array) -> bool:
    with np.errstate(all="ignore"):
        back = numbers.astype(narrower).astype(numbers.dtype)
    return np.array_equal(as_bits(back), as_bits(numbers))


def _widened(stored: Array, dtype: ir.DataType) -> Numbers:
    def write(builder: DecoderBuilder, shape: Sequence[int]) -> ir.Value:
        return builder.op("Cast", builder.store(stored.reshape(shape)), to=dtype)

    return Numbers("narrow", stored.nbytes + _NODE_BYTES, write)
