"""Constants of operators that multiply integers and put out integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.channels.evaluation import Requantization
from onnxopt.channels.integers import Grid
from onnxopt.channels.known import Known, Transfer
from onnxopt.channels.parameters import Parameter
from onnxopt.channels.tracer import Tracer

__all__ = ["requantizing"]

#: No more than the runtime's sums of products hold.
_LARGEST = 2.0**31 - 1


def requantizing(
    node: ir.Node, tracer: Tracer, weights: Parameter, grid: Grid, transfer: Transfer
) -> Transfer:
    """The transfer between integers: sums of products, rounded as the runtime does.

    Args:
        node: QLinearConv or QLinearMatMul.
        tracer: Of the graph.
        weights: Of the node.
        grid: Of its input.
        transfer: From numbers to numbers, in double precision.
    """
    requantization = Requantization(node, tracer.opset, tracer.ir_version)
    assert weights.scale is not None
    step = weights.scale * grid.scale

    def between_integers(known: Sequence[Known | None]) -> Known | None:
        found = transfer([grid.numbers(known[0])])
        if found is None:
            return None
        sums = np.rint(found.numbers.reshape(-1) / step)
        mask = found.mask & (np.abs(sums) <= _LARGEST).reshape(found.mask.shape)
        levels = requantization.levels(np.where(mask.reshape(-1), sums, 0).astype(np.int32))
        return None if levels is None else Known(mask, levels.reshape(mask.shape))

    return between_integers
