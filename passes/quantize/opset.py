"""Raise a model's opset as far as 8-bit nodes need it."""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnxopt.passes.lift_constants import LiftConstants

from onnxopt.errors import OnnxoptError

__all__ = ["BLOCKS_OPSET", "PER_CHANNEL_OPSET", "OpsetError", "raise_opset"]

#: From here on DequantizeLinear takes a scale for each channel.
PER_CHANNEL_OPSET = 13
#: From here on also one for each block, and types of 4 and 16 bits.
BLOCKS_OPSET = 21
_NEEDED = ("8-bit weights with a scale for each channel", "types of 4 and 16 bits")


class OpsetError(OnnxoptError):
    """The model cannot be converted to the opset that is needed."""


def raise_opset(model: ir.Model, least: int = PER_CHANNEL_OPSET) -> bool:
    """Convert a model in place to at least this opset.

    What were attributes may be inputs then; such constants become initializers, as `lift-constants`
    would have made them had they been there before.

    Returns:
        Whether it had to be.

    Raises:
        OpsetError: When the converter does not manage.
    """
    if model.opset_imports.get("", 0) >= least:
        return False
    from onnxscript.version_converter import ConvertVersionPass

    logger = logging.getLogger("onnxscript.version_converter")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of what is asked of it here
    try:
        ConvertVersionPass(least, fallback=True)(model)
    finally:
        logger.setLevel(level)
    if model.opset_imports.get("", 0) < least:
        raise OpsetError(
            f"the model of opset {model.opset_imports.get('', 0)} cannot be converted to {least}, "
            f"which {_NEEDED[least >= BLOCKS_OPSET]} need"
        )
    LiftConstants()(model)
    return True
