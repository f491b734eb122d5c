"""The pass `smooth-activations`: where channels can be scaled, and by how much it is worth."""

from __future__ import annotations

from .smooth import SmoothActivations

__all__ = ["SmoothActivations"]
