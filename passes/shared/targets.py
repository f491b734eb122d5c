"""For which element types a standard operator is worth having, in place of its spelling.

From ONNX Runtime 1.32 on CPU: where there is no kernel for a type, the runtime computes float16 in
float32 between casts, and refuses to load the others. So float16 is listed where the operator gains
although it is cast; double only where there is a kernel that is not slower than the spelling (its
Sigmoid is, its HardSigmoid, LeakyRelu, Elu, Softsign do not exist); bfloat16 nowhere.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnxopt.rewriting import Context

__all__ = ["available", "not_worth"]

_FLOAT, _HALF, _DOUBLE = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE
_SINGLE_AND_HALF = frozenset({_FLOAT, _HALF})
_ALL = frozenset({_FLOAT, _HALF, _DOUBLE})

#: Element types by operator; see above.
_WORTHWHILE = {
    "Abs": _ALL,
    "Elu": _SINGLE_AND_HALF,
    "HardSigmoid": _SINGLE_AND_HALF,
    "HardSwish": _SINGLE_AND_HALF,
    "InstanceNormalization": _SINGLE_AND_HALF,
    # Double would compute its statistics in single precision (stash_type).
    "LayerNormalization": _SINGLE_AND_HALF,
    "LeakyRelu": _SINGLE_AND_HALF,
    "LogSoftmax": _ALL,
    "Mul": _ALL,
    "PRelu": _SINGLE_AND_HALF,
    "RMSNormalization": _SINGLE_AND_HALF,
    "Reciprocal": _ALL,
    "Relu": _ALL,
    "Sigmoid": _SINGLE_AND_HALF,
    "Softmax": _ALL,
    "Softsign": _SINGLE_AND_HALF,
    "Sqrt": _ALL,
    "Tanh": _ALL,
    "ThresholdedRelu": _SINGLE_AND_HALF,
}


def available(op_type: str, context: Context, node: ir.Node) -> bool:
    """Whether the opset that holds where the node stands has this operator."""
    return bool(onnx.defs.has(op_type, context.opset(node), ""))


def not_worth(op_type: str, x: ir.Value, context: Context, node: ir.Node) -> str | None:
    """Why this operator should not take the place of a spelling in ``x``, or None if it should."""
    if not available(op_type, context, node):
        return f"the opset has no {op_type}"
    if x.dtype is None:
        return "the element type is unknown"
    if x.dtype not in _WORTHWHILE[op_type]:
        return f"{op_type} does not gain for {x.dtype.name.lower()}"
    return None
