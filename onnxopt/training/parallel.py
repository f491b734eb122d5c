"""Several processes that train one student, as ``torchrun`` starts them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import distributed, nn

__all__ = ["Processes", "joined_processes"]


class Processes:
    """The processes that train together; one when nothing else was started.

    Attributes:
        rank: Number of this one, from 0.
        count: How many there are.
    """

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank: int = distributed.get_rank() if together else 0
        self.count: int = distributed.get_world_size() if together else 1

    @property
    def is_first(self) -> bool:
        """Whether this process evaluates and writes."""
        return self.rank == 0

    def share(self, numbers: Sequence[int]) -> Sequence[int]:
        """The samples of a step that are this process's."""
        return numbers[self.rank :: self.count]

    def wrap(self, module: nn.Module) -> nn.Module:
        """A module whose gradients are averaged over the processes."""
        if self.count == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)

    def unsynchronized(self, module: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Where gradients only add up, since more of the same step follow."""
        if self.count == 1:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = module.no_sync()
        return context

    def agree(self, value: float) -> float:
        """The first process's number, in all of them."""
        if self.count == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64)
        distributed.broadcast(box, 0)
        return float(box)

    def sum(self, value: float) -> float:
        """The sum of a number over the processes."""
        if self.count == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64)
        distributed.all_reduce(box)
        return float(box)


@contextlib.contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the other processes where ``torchrun`` started several; leave them at the end."""
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized()
    if started:
        distributed.init_process_group("gloo")
    try:
        yield Processes()
    finally:
        if started:
            distributed.destroy_process_group()
