"""onnxopt: optimizes ONNX models, checks the result in ONNX Runtime, undoes what does not help.

import onnxopt

report = onnxopt.optimize("in.onnx", "out.onnx")
print(report.speed, report.undone)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxopt.errors import OnnxoptError
    from onnxopt.optimizer import Settings, optimize
    from onnxopt.report.run import RunReport

__all__ = ["OnnxoptError", "RunReport", "Settings", "optimize"]

_HOMES = {
    "OnnxoptError": "onnxopt.errors",
    "RunReport": "onnxopt.report.run",
    "Settings": "onnxopt.optimizer",
    "optimize": "onnxopt.optimizer",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for and nothing else: start-up time is part of the product."""
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxopt' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
