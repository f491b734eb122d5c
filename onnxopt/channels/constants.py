"""Which channels hold the same number everywhere, in every run that is fed finite numbers."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.channels.known import Known
from onnxopt.channels.tracer import Trace

__all__ = ["known_channels"]


def known_channels(trace: Trace) -> dict[ir.Value, Known]:
    """What is known of the channels of each value that has constant ones.

    Sources are weights and scales that are exactly 0 (sums that are 0 prove nothing: a Sobel filter
    sums to 0). From there constants go forward through the rule of each operator. Values are as the
    runtime computes them, up to rounding.
    """
    known: dict[ir.Value, Known] = {}
    for step in trace.steps:
        inputs = [None if value is None else known.get(value) for value in step.inputs]
        found = step.transfer(inputs)
        if found is not None and found.mask.any():
            known[step.output] = found
    return known
