"""Write constant scales and shifts between convolutions as BatchNormalization.

A runtime that keeps convolutions in a blocked layout (ONNX Runtime's NCHWc) has to leave it for a
Mul or Add with a constant and come back, each way over the whole tensor; a BatchNormalization it
runs in that layout. With mean 0, variance 1 and epsilon 0 that computes scale * x + shift to the
last bit. A chain of steps becomes one.

Exact. For what `fuse-affine` cannot fold, so run it after that: a shift before a convolution that
pads, above all. Left alone: tensors of other than four dimensions or another element type than
float (there is no blocked layout for them), constants that are not by channel, and steps with no
convolution or pooling on both sides, or only behind more than an activation.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.analysis import values
from onnxopt.op_traits import Trait, has_trait, is_standard
from onnxopt.rewriting import Context, RewritePass, Rewriter, RewriteRule

from .shared.affine import Array, Step, chain_ending_at, compose, read_step, round_to

__all__ = ["AffineToBatchNorm"]

#: How many nodes back from a step the convolution before its activation is looked for.
_ACTIVATION_REACH = 4
#: Operators that work in the blocked layout and are worth staying in it for.
_BLOCKED = frozenset({"Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})


@dataclasses.dataclass
class _Stuck:
    chain: list[Step]
    scale: Array | None = None
    shift: Array | None = None


class _StepAsNormalization(RewriteRule[_Stuck]):
    """Steps between convolutions that nothing takes in become one BatchNormalization."""

    name = "step-as-normalization"
    anchors: ClassVar[tuple[str, ...]] = ("Mul", "Div", "Add", "Sub", "Neg")

    def match(self, node: ir.Node, context: Context) -> _Stuck | None:
        step = read_step(node, context)
        if step is None or values.rank(step.source) != 4 or step.dtype != ir.DataType.FLOAT:
            return None
        chain = chain_ending_at(step, context)
        if any(each.node.op_type == "BatchNormalization" for each in chain):
            return None
        readers = [reader for reader in step.output.consumers() if is_standard(reader)]
        if not any(reader.op_type in _BLOCKED for reader in readers):
            return None
        return _Stuck(chain) if _follows_convolution(chain[0].source) else None

    def check(self, match: _Stuck, context: Context) -> str | None:
        source = match.chain[0].source
        known = values.dims(source)
        if context.opset(match.chain[0].node) < 9:
            return "BatchNormalization has other attributes in this opset"
        if known is None or not isinstance(known[1], int):
            return "the number of channels is unknown"
        vectors = compose(match.chain).along(1, 4, known[1])
        match.scale, match.shift = (round_to(each, ir.DataType.FLOAT) for each in vectors)
        return None

    def rewrite(self, match: _Stuck, rewriter: Rewriter) -> None:
        assert match.scale is not None
        assert match.shift is not None
        last = match.chain[-1].output
        channels = match.scale.size
        numbers = {
            "scale": match.scale,
            "bias": match.shift,
            "mean": np.zeros(channels, np.float32),
            "variance": np.ones(channels, np.float32),
        }
        constants = [
            rewriter.initializer(array, f"{last.name}_{name}") for name, array in numbers.items()
        ]
        inputs = [match.chain[0].source, *constants]
        attributes = {"epsilon": 0.0}
        rewriter.replace(last, rewriter.op("BatchNormalization", inputs, attributes, like=last))


def _follows_convolution(value: ir.Value | None) -> bool:
    """Whether nothing but an activation or pooling lies between a Conv and the value."""
    level = [value]
    for _ in range(_ACTIVATION_REACH):
        producers = [each.producer() for each in level if each is not None]
        nodes = [node for node in producers if node is not None and is_standard(node)]
        if any(node.op_type == "Conv" for node in nodes):
            return True
        level = [
            operand
            for node in nodes
            if has_trait(node, Trait.UNARY) or has_trait(node, Trait.BROADCAST)
            for operand in node.inputs
        ]
    return False


class AffineToBatchNorm(RewritePass):
    """Write constant scales and shifts between convolutions as BatchNormalization."""

    name = "affine-to-batch-norm"

    def rules(self) -> list[RewriteRule[_Stuck]]:
        """The one rule."""
        return [_StepAsNormalization()]
