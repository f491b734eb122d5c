"""What ONNX Runtime fuses when it loads a model, and what of that a rewrite costs.

A graph with fewer nodes can be slower: when a rewrite spoils a pattern that the runtime looks for,
the runtime runs the parts one by one. The census counts the kernels that really ran.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from onnxopt.runtime.messages import Kernel

__all__ = ["census", "lost_fusions"]

#: Fused kernels, by the family within which one may stand for another.
_FAMILIES: dict[str, tuple[str, ...]] = {
    "attention": (
        "Attention",
        "MultiHeadAttention",
        "GroupQueryAttention",
        "PackedAttention",
        "QAttention",
    ),
    "layer normalization": (
        "LayerNormalization",
        "SkipLayerNormalization",
        "EmbedLayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    ),
    "skip layer normalization": (
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "EmbedLayerNormalization",
    ),
    "GELU": ("Gelu", "BiasGelu", "FastGelu", "QuickGelu"),
    "bias GELU": ("BiasGelu", "FastGelu"),
    "fused convolution": ("FusedConv", "NhwcFusedConv"),
    "fused matrix product": ("FusedMatMul", "FusedGemm", "MatMulNBits"),
    "integer convolution": ("QLinearConv", "ConvInteger"),
    "integer matrix product": (
        "QLinearMatMul",
        "QGemm",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
    ),
    "rotary embedding": ("RotaryEmbedding",),
    "softmax": ("Softmax", "BiasSoftmax", "LogSoftmax"),
}


def census(kernels: Sequence[Kernel]) -> Counter[str]:
    """Number of nodes that ran, by the operator the runtime chose."""
    return Counter(kernel.op_type for kernel in kernels)


def lost_fusions(before: Counter[str], after: Counter[str]) -> list[str]:
    """Families of fused kernels that became fewer while other kernels became more.

    When only the number of fused kernels falls, whatever they computed is gone, and that is what
    an optimizer is for. When other kernels take their place, a fusion is lost.

    Returns:
        One phrase for each family, with the counts and the kernels that took over.
    """
    lost: list[str] = []
    for family, members in _FAMILIES.items():
        was, now = (sum(counts[op] for op in members) for counts in (before, after))
        if now >= was:
            continue
        grown = {
            op: after[op] - before[op]
            for op in after
            if after[op] > before[op] and op not in members
        }
        if grown and sum(after.values()) >= sum(before.values()) - (was - now):
            parts = ", ".join(f"{op} +{count}" for op, count in sorted(grown.items()))
            lost.append(f"{family} {was} to {now} ({parts})")
    return lost
