"""The pass `prune-channels`: a file for each question; `prune_channels` puts them together."""

from __future__ import annotations

from .prune_channels import PruneChannels

__all__ = ["PruneChannels"]
