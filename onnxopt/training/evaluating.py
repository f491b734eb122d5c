"""A module as it is when it does not train."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

__all__ = ["evaluating"]


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without batch statistics, which would move and depend on the batch; then as it was."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
