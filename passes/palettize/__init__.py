"""The pass `palettize`: few different numbers in each weight, for `compact-weights` to store."""

from __future__ import annotations

from .palettize import Palettize

__all__ = ["Palettize"]
