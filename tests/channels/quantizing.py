"""Quantize a small float model as ONNX Runtime's static quantizer does, to QDQ."""

from __future__ import annotations

import logging
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from tests.differential import Feed

__all__ = ["quantized"]


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        feed = next(self._feeds, None)
        return None if feed is None else dict(feed)


def quantized(
    model: onnx.ModelProto,
    feeds: Sequence[Feed],
    *,
    per_channel: bool = True,
    signed: bool = False,
    operators: bool = False,
) -> onnx.ModelProto:
    """The model with QuantizeLinear and DequantizeLinear around its operators.

    Args:
        model: A float model.
        feeds: What to calibrate on.
        per_channel: Whether each output channel of a layer has a scale of its own.
        signed: Whether activations are int8 rather than uint8.
        operators: Whether to use operators on integers (QLinearConv) in place of these pairs.
    """
    logging.getLogger().setLevel(logging.ERROR)  # it recommends preprocessing
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
        source, target = (pathlib.Path(folder, name) for name in ("float.onnx", "int8.onnx"))
        onnx.save(model, source)
        quantize_static(
            str(source),
            str(target),
            _Reader(feeds),
            quant_format=QuantFormat.QOperator if operators else QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(target)
