"""A graph as a flat list of calls, and how it runs.

Nothing is looked up while it runs: attributes are bound into the functions when the program is
compiled, and values live in numbered slots. A slot is emptied after its last reader, so that the
memory of a step is what autograd keeps and no more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Branch", "Program", "Step", "run"]

#: What slots hold: tensors, small numpy arrays (shapes and what is computed of them), or None.
Slots = list[Any]


@dataclasses.dataclass(frozen=True)
class Step:
    """One call.

    Attributes:
        function: What is called, with what is in the slots of ``inputs``. It gives a tuple exactly
            when there are several outputs.
        inputs: Slots that are read. Slot 0 always holds None, for inputs that are not given.
        outputs: Slots that are written.
        finished: Slots that nobody reads any more afterwards.
        node: The node it stands for, in words, for messages.
    """

    function: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    node: str
    finished: tuple[int, ...] = ()

    @property
    def reads(self) -> tuple[int, ...]:
        """Slots that are read."""
        return self.inputs


@dataclasses.dataclass(frozen=True)
class Branch:
    """An ``If``: one of two programs runs, in the same slots.

    Attributes:
        condition: Slot of the condition.
        choices: Steps for false and for true.
        results: For each choice the slots of its results, in the order of ``outputs``.
        outputs: Slots that are written.
        finished: Slots that nobody reads any more afterwards.
        node: The node in words.
    """

    condition: int
    choices: tuple[tuple[Step | Branch, ...], tuple[Step | Branch, ...]]
    results: tuple[tuple[int, ...], tuple[int, ...]]
    outputs: tuple[int, ...]
    node: str
    finished: tuple[int, ...] = ()

    @property
    def reads(self) -> tuple[int, ...]:
        """Slots that are read, by whichever choice."""
        found = {self.condition}
        for steps, results in zip(self.choices, self.results, strict=True):
            found.update(results)
            for step in steps:
                found.update(step.reads)
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled graph.

    Attributes:
        steps: In the order in which they run.
        slots: How many slots there are.
        constants: Slots of numpy arrays, with the arrays.
        tensors: Slots of parameters and buffers, with their names in the module.
        inputs: Slot of each graph input.
        outputs: Slot of each output.
        device: Slot for the device that new tensors are made on.
        training: Slot for whether batch statistics are to be taken.
    """

    steps: tuple[Step | Branch, ...]
    slots: int
    constants: tuple[tuple[int, Any], ...]
    tensors: tuple[tuple[int, str], ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    device: int
    training: int


def run(steps: Sequence[Step | Branch], slots: Slots) -> None:
    """Run steps on filled slots.

    Raises:
        Exception: Whatever a function raises, with a note that names the node.
    """
    for step in steps:
        try:
            if isinstance(step, Step):
                result = step.function(*[slots[index] for index in step.inputs])
                outputs = step.outputs
                if len(outputs) == 1:
                    slots[outputs[0]] = result
                else:
                    for index, each in zip(outputs, result, strict=True):
                        slots[index] = each
            else:
                choice = bool(slots[step.condition])
                run(step.choices[choice], slots)
                for source, target in zip(step.results[choice], step.outputs, strict=True):
                    slots[target] = slots[source]
        except Exception as error:
            error.add_note(f"in {step.node}")
            raise
        for index in step.finished:
            slots[index] = None
