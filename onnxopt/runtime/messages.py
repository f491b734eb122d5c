"""What the worker and its child process tell each other."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

__all__ = ["Kernel", "KernelTime", "Port", "SessionInfo", "Watcher"]


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output as the runtime sees it.

    Attributes:
        name: Its name.
        type: The runtime's type string, such as ``tensor(float)`` or ``seq(tensor(int64))``.
        shape: Numbers, symbols, or None for an unknown size; empty for anything but tensors.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclasses.dataclass(frozen=True)
class SessionInfo:
    """A model that the runtime has loaded.

    Attributes:
        session: Handle for further requests.
        load_seconds: Time to create the session.
        inputs: Required inputs.
        outputs: Outputs.
        overridable: Initializers that may be fed instead of their default.
        load_cpu_seconds: Time that processors worked meanwhile, whatever else the machine did.
    """

    session: int
    load_seconds: float
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    overridable: tuple[Port, ...]
    load_cpu_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A node of the runtime's optimized graph that ran.

    Attributes:
        node: Name of the node.
        op_type: Operator the runtime chose, such as ``FusedConv``.
        seconds: Time it took, all runs together.
        undisturbed: Mean time of the faster half of them, in which other work on the machine hardly
            shows; in one run.
    """

    node: str
    op_type: str
    seconds: float
    undisturbed: float = 0.0


class Watcher(Protocol):
    """Looks at one input or output of a model, run after run, inside the child process."""

    @property
    def takes_blocks(self) -> bool:
        """Whether channels may lie together."""

    def see(self, value: Any, lot: int | None, block: int = 1) -> str | None:
        """Look at what a run made of it, an array that is not to be kept.

        Args:
            value: The array.
            lot: What was given with the run.
            block: So many channels lie together: memory is [N, C / block, ..., block].

        Returns:
            What is wrong with it, or None.
        """

    def settle(self) -> str | None:
        """End a piece of the samples.

        Returns:
            What is wrong with it together with those before, or None.
        """


@dataclasses.dataclass(frozen=True)
class KernelTime:
    """A node of the runtime's optimized graph, and how long it takes.

    Attributes:
        node: Name of the node.
        op_type: Operator the runtime chose, such as ``FusedConv``.
        seconds: Median over runs of the time it takes in one run, less that of nodes inside it.
        input_types: The runtime's element type of each input, such as ``float`` or ``uint8``.
        outputs: Names of the values it gives; none where the node was not found again in the
            optimized graph.
    """

    node: str
    op_type: str
    seconds: float
    input_types: tuple[str, ...]
    outputs: tuple[str, ...]
