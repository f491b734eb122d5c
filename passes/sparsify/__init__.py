"""The pass `sparsify`: a file for each question; `sparsify` puts them together."""

from __future__ import annotations

from .sparsify import Sparsify

__all__ = ["Sparsify"]
