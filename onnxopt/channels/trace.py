"""Follow the channels of a graph."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.channels.operators import handler_for
from onnxopt.channels.tracer import Trace, Tracer

__all__ = ["trace"]


def trace(graph: ir.Graph, opset: int, ir_version: int) -> Trace:
    """Follow the channels of a graph; bodies of control flow are graphs of their own.

    Args:
        graph: The graph.
        opset: Version of the standard operators there.
        ir_version: IR version of the model.
    """
    tracer = Tracer(graph, opset, ir_version)
    tracer.walk(handler_for)
    return tracer.result()
