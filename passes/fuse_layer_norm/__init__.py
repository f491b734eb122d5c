"""Find normalizations that are spelled out, and use their operators.

With all means along the last axes, kept as axes of length one:

- ``d / sqrt(mean(d * d) + epsilon)`` with ``d = x - mean(x)`` is LayerNormalization (opset 17 and
  later; Ba, Kiros and Hinton, Layer Normalization, 2016); with ``d = x`` it is RMSNormalization
  (opset 23 and later; Zhang and Sennrich, Root Mean Square Layer Normalization, 2019). When the
  means run along all axes but the first two of four or more, it is InstanceNormalization.
- ``x * g + (beta - mean(x) * g)`` with ``g = gamma / sqrt(...)`` is LayerNormalization too.
- A constant that multiplies the result goes into the scale, one that is added into the bias.
- float16 that is cast to float32 around the operator only: the operator computes in float32 itself
  (its stash_type), and takes and gives float16.
- Add before LayerNormalization becomes Sum (option ``separate-sums``), see `SeparateSum`.

Exact, up to rounding: the operators compute what the ONNX specification spells in the same steps.

ONNX Runtime finds the first form itself when it loads a model, if it is spelled by Pow and Div with
scale and bias; it finds none of the others. Rewritten, all of them are one kernel (2 to 3x).

Left alone: opsets without the operator; means along other axes; shapes of the normalized axes that
are not known, since the scale has that shape; scales and biases that are computed; double, for
which the operator would compute in single precision.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from onnxopt.rewriting import RewritePass, RewriteRule

from .affine import DropCasts, MergeBias, MergeScale
from .rules import FuseAffineLayerNorm, FuseNormalization
from .sums import SeparateSum

__all__ = ["FuseLayerNorm", "FuseLayerNormOptions"]


@dataclasses.dataclass(frozen=True)
class FuseLayerNormOptions:
    """Options of `FuseLayerNorm`.

    Attributes:
        separate_sums: Keep ONNX Runtime from fusing SkipLayerNormalization, which is slow on CPU.
            Say false for a runtime that has a fast one, as on GPUs.
    """

    separate_sums: bool = True


class FuseLayerNorm(RewritePass):
    """Use LayerNormalization, RMSNormalization, InstanceNormalization where they are spelled."""

    name = "fuse-layer-norm"
    Options = FuseLayerNormOptions

    def rules(self) -> list[RewriteRule[Any]]:
        """The cores first, then what may join them."""
        rules: list[RewriteRule[Any]] = [
            FuseNormalization(),
            FuseAffineLayerNorm(),
            MergeScale(),
            MergeBias(),
            DropCasts(),
        ]
        return [*rules, SeparateSum()] if self.options.separate_sums else rules
