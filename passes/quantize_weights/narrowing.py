"""Weights in 8 or 4 bits: scales with the least squared error, and rounding by second order.

Signed 8 bits have a scale for each output, all else one for each block of inputs of each output.
A scale is the best of some that clip the largest weights a little (squared error; Banner et
al., "Post training 4-bit quantization of convolutional networks", 2019). With the Gram matrix of a
layer's inputs, weights are then rounded one after the other so that those still to come make up for
the error (GPTQ, Frantar et al. 2022).
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import ml_dtypes
import numpy as np

from onnxopt.numerics.rounding import round_with_compensation

__all__ = ["Form", "Narrow", "compensated", "dequantized", "narrow", "stored_bytes"]

Array = np.ndarray[Any, Any]

#: What is added to the diagonal of a Gram matrix, relative to its mean: at least the first, and the
#: second times inputs in a row by rows that were seen.
_DAMPING, _TRUST = 0.01, 0.5
#: Second order takes so many times as many rows as there are inputs in one.
_ENOUGH_ROWS = 2
_UNSIGNED = (ml_dtypes.uint4, np.uint8)
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7)


class Form(enum.StrEnum):
    """How weights are stored."""

    #: 8 bits, a scale for each output.
    INT8 = "int8"
    #: 4 bits from -7 to 7, a scale for each block.
    INT4 = "int4"
    #: 4 bits from 0 to 15, a scale and a zero point for each block.
    UINT4 = "uint4"
    #: 8 bits from 0 to 255, a scale and a zero point for each block.
    UINT8 = "uint8"


_BLOCKED = {Form.INT4: ml_dtypes.int4, Form.UINT4: ml_dtypes.uint4, Form.UINT8: np.uint8}


@dataclasses.dataclass(frozen=True)
class Narrow:
    """Narrowed weights, inputs first.

    Attributes:
        numbers: [K, M], int8, uint8 or a 4-bit type.
        scales: float32 [M], or [blocks, M].
        zeros: Zero points of the same shape and the type of the numbers.
        block: Inputs in a block; 0 for one scale for each output.
    """

    numbers: Array
    scales: Array
    zeros: Array
    block: int


def stored_bytes(size: int, outputs: int, form: Form, block: int) -> int:
    """Bytes that narrowed weights take in a file, without what names them.

    Args:
        size: How many weights.
        outputs: How many outputs, where each has one scale.
        form: How they are stored.
        block: Inputs in a block.
    """
    if form is Form.INT8:
        return size + 5 * outputs
    if form is Form.UINT8:
        return size + (5 * size) // block
    return size // 2 + (9 * size) // (2 * block)


def narrow(matrix: Array, form: Form, block: int) -> Narrow:
    """Round weights to nearest.

    Args:
        matrix: float32 [K, M], inputs first.
        form: How they are stored.
        block: Inputs in a block, where the form has blocks.
    """
    if form is Form.INT8:
        scales = _best_scales(matrix[None], 127)[0]
        numbers = np.clip(np.rint(matrix / scales), -127, 127).astype(np.int8)
        return Narrow(numbers, scales, np.zeros_like(scales, np.int8), 0)
    blocks = _blocks(matrix, block)
    if form is Form.INT4:
        scales = _best_scales(blocks, 7)
        numbers = np.clip(np.rint(blocks / scales[:, None]), -7, 7)
        zeros = np.zeros_like(scales)
    else:
        low, high = blocks.min(axis=1).clip(max=0.0), blocks.max(axis=1).clip(min=0.0)
        most = 15 if form is Form.UINT4 else 255
        scales = _positive((high - low) / most)
        zeros = np.rint(-low / scales).clip(0, most)
        numbers = np.clip(np.rint(blocks / scales[:, None]) + zeros[:, None], 0, most)
    dtype = _BLOCKED[form]
    flat = numbers.reshape(-1, matrix.shape[1])[: len(matrix)]
    return Narrow(flat.astype(dtype), scales.astype(np.float32), zeros.astype(dtype), block)


def compensated(plain: Narrow, matrix: Array, gram: Array, rows: int) -> Narrow:
    """Rounded so that outputs change least; unsigned ones, or of few rows, are left as they are.

    Args:
        plain: Rounded to nearest.
        matrix: float32 [K, M].
        gram: Mean of ``x^T x`` of the layer's inputs, [K, K].
        rows: How many inputs that is of. With fewer than there are weights in a row, the matrix
            says that some changes cost nothing which do cost something elsewhere; the fewer, the
            more the weights themselves have to stay near.
    """
    if plain.zeros.dtype in _UNSIGNED or rows < _ENOUGH_ROWS * len(matrix):
        return plain
    scales = plain.scales
    if plain.block:
        scales = np.repeat(scales, plain.block, axis=0)[: len(matrix)]
    found = round_with_compensation(
        matrix[None],
        scales[None],
        gram[None],
        steps=7 if plain.block else 127,
        start=plain.numbers.astype(np.int16)[None],
        damping=max(_DAMPING, _TRUST * len(matrix) / max(rows, 1)),
    )
    return dataclasses.replace(plain, numbers=found[0].astype(plain.numbers.dtype))


def dequantized(weights: Narrow) -> Array:
    """What the numbers stand for, float32 [K, M]."""
    scales, zeros = weights.scales, weights.zeros.astype(np.float32)
    if weights.block:
        count = len(weights.numbers)
        scales, zeros = (np.repeat(each, weights.block, axis=0)[:count] for each in (scales, zeros))
    return np.asarray((weights.numbers.astype(np.float32) - zeros) * scales)


def _blocks(matrix: Array, block: int) -> Array:
    """[blocks, block, M]; the last one filled up with zeros."""
    missing = -len(matrix) % block
    return np.pad(matrix, ((0, missing), (0, 0))).reshape(-1, block, matrix.shape[1])


def _best_scales(blocks: Array, steps: int) -> Array:
    """float32 [blocks, M]."""
    widest = _positive(np.abs(blocks).max(axis=1) / steps)
    best, least = widest, np.full(widest.shape, np.inf)
    for shrink in _SHRINKS:
        scales = (widest * np.float32(shrink)).astype(np.float32)
        wide = scales[:, None]
        error = np.square(np.clip(np.rint(blocks / wide), -steps, steps) * wide - blocks).sum(
            axis=1
        )
        best, least = np.where(error < least, scales, best), np.minimum(error, least)
    return np.asarray(best)


def _positive(scales: Array) -> Array:
    return np.where(scales > 0, scales, 1.0).astype(np.float32)
