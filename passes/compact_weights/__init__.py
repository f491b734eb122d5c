"""The pass `compact-weights`: a file for each code; `choice` picks, `compact` applies."""

from __future__ import annotations

from .compact import CompactWeights

__all__ = ["CompactWeights"]
