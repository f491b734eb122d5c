"""Find activations that are spelled out in elementary nodes, and use their operators.

Rewritten, in all orders of the operands and with constants of any rank:

- ``min(max(a*x + b, 0), 1)``, also scaled as in ``Clip(x + 3, 0, 6) / 6``: HardSigmoid;
- ``x`` times that: HardSwish, or HardSigmoid and Mul before opset 14 or for another a and b;
- ``c / (1 + exp(-x))`` and ``(1 + tanh(x/2)) / 2``: Sigmoid; ``2 * sigmoid(2*x) - 1``: Tanh;
- ``x / (1 + |x|)``: Softsign;
- ``Where`` on the sign of x, ``max(x, a*x)`` and ``relu(x) - a * relu(-x)``: Relu, LeakyRelu,
  PRelu, Elu, Abs, ThresholdedRelu;
- ``Pow`` by 2, 1/2, -1 and -1/2: Mul, Sqrt, Reciprocal.

Exact for finite inputs, up to rounding. Constants may differ from the formula's by 1e-5 relative
(1e-3 in float16, 1e-6 in double), but bounds near 0 or 1 that keep a logarithm finite are kept.
Only where ONNX Runtime gains: see ``_targets``.

Left alone, since the operator is no faster than its spelling in ONNX Runtime 1.32 on CPU:
``x * sigmoid(x)`` (Swish of opset 24 loses the runtime's own fusion: 0.7x), ``log(1 + exp(x))``
(Softplus: 0.15x, and it differs where exp overflows), ``x * tanh(softplus(x))`` (Mish: see
`expand_activations`), Elu and PRelu spelled with Relu (0.5x and 0.2x). Left alone too: formulas
that overflow where the operator does not, like Tanh from ``exp(x)`` and ``exp(-x)``, or
``sqrt(x * x)``; double where the runtime has no kernel; bfloat16.
"""

from __future__ import annotations

from typing import Any

from onnxopt.rewriting import RewritePass, RewriteRule

from .hard_activations import FuseHardSigmoid, FuseHardSwish
from .powers import ReplacePow
from .rectifiers import FuseMax, FuseRelus, FuseWhere
from .sigmoids import FuseSigmoid, FuseSigmoidOrTanh, FuseSoftsign

__all__ = ["FuseActivations"]


class FuseActivations(RewritePass):
    """Use operators for activations that are spelled out."""

    name = "fuse-activations"

    def rules(self) -> list[RewriteRule[Any]]:
        """The longer pattern first, where two end at the same operator."""
        return [
            FuseHardSwish(),
            FuseHardSigmoid(),
            FuseSigmoidOrTanh(),
            FuseSigmoid(),
            FuseSoftsign(),
            FuseWhere(),
            FuseMax(),
            FuseRelus(),
            ReplacePow(),
        ]
