"""What passes leave word of for those behind them in the same run."""

from __future__ import annotations

__all__ = ["META_QUANTIZED"]

#: Key of `onnx_ir.Model.meta`: the model came as float and was quantized in this very run.
META_QUANTIZED = "onnxopt.quantized-here"
