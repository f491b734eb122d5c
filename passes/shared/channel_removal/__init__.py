"""Take channels out of a graph: which can go, what they add to what stays, the removal itself."""

from __future__ import annotations

from .choice import Choice, choose
from .removal import remove

__all__ = ["Choice", "choose", "remove"]
