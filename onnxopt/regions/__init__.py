"""Which parts of a graph a runtime computes in one kernel, and which of them it has in 8 bits.

Read-only: `products` finds multiplications by constant weights with what is computed along with
them, `recurrences` finds recurrent layers, and `followers` tells how values travel between products
without leaving 8 bits.
"""

from __future__ import annotations

from onnxopt.regions.followers import Follower, FollowerKind, follower
from onnxopt.regions.products import Clamp, Product, clamp_after, products
from onnxopt.regions.recurrences import Recurrence, recurrences

__all__ = [
    "Clamp",
    "Follower",
    "FollowerKind",
    "Product",
    "Recurrence",
    "clamp_after",
    "follower",
    "products",
    "recurrences",
]
