"""Store weights in 8 or 4 bits and compute in float."""

from __future__ import annotations

from .quantize_weights import QuantizeWeights

__all__ = ["QuantizeWeights"]
