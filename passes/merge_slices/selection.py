"""What the rules on Slice, Split and Concat share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Rewriter

from .slice_algebra import AxisSlice

__all__ = ["MADE_ELSEWHERE", "Slices", "producer", "write_slice"]

#: Why an output cannot be replaced.
MADE_ELSEWHERE = "it names a graph output that is made elsewhere"


def producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node that makes a value, if it has this standard operator."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator and is_standard(node) else None


def write_slice(
    source: ir.Value, slices: Mapping[int, AxisSlice], node: ir.Node, rewriter: Rewriter
) -> ir.Value:
    """Insert a Slice with the same result as a node."""
    output = node.outputs[0]
    axes = sorted(slices)
    columns = {
        "starts": [slices[axis].start for axis in axes],
        "ends": [slices[axis].end for axis in axes],
        "axes": axes,
        "steps": [slices[axis].step for axis in axes],
    }
    steps = columns.pop("steps")
    if rewriter.context.opset(node) < 10:
        return rewriter.op("Slice", [source], columns, like=output)
    if any(step != 1 for step in steps):
        columns["steps"] = steps
    constants = [
        rewriter.initializer(np.array(numbers, np.int64), f"{output.name}_{name}")
        for name, numbers in columns.items()
    ]
    return rewriter.op("Slice", [source, *constants], like=output)


@dataclasses.dataclass(frozen=True)
class Slices:
    """A Slice of a source that does what a node does."""

    node: ir.Node
    source: ir.Value
    slices: dict[int, AxisSlice]
