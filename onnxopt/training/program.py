"""A graph as a flat list of calls, and how it runs.

Nothing is looked up while it runs: attributes are bound into the functions when the program is
compiled, and values live in numbered slots. A slot is emptied after its last reader, so that the
memory of a step is what autograd keeps and no more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from onnxopt.training.numbers import tensor_to_host

__all__ = [
    "NOTHING",
    "AnyStep",
    "Branch",
    "Collected",
    "Program",
    "Repeat",
    "Step",
    "Stepped",
    "run",
]

#: What slots hold: tensors, small numpy arrays (shapes and what is computed of them), or None.
Slots = list[Any]
#: What a program consists of.
AnyStep: TypeAlias = "Step | Branch | Repeat"
#: This slot always holds None, for inputs that are not given.
NOTHING = 0


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
    choices: tuple[tuple[AnyStep, ...], tuple[AnyStep, ...]]
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
class Stepped:
    """A tensor that a ``Scan`` goes through, one slice in each round.

    Attributes:
        source: Slot of the tensor.
        target: Slot of the slice.
        axis: The axis that is gone through.
        backward: Whether from its end.
    """

    source: int
    target: int
    axis: int
    backward: bool


@dataclasses.dataclass(frozen=True)
class Collected:
    """A tensor that is made of what each round gives.

    Attributes:
        source: Slot of a round's part.
        target: Slot of the tensor.
        axis: The axis along which the parts are stacked.
        backward: Whether the last part comes first.
        empty: Shape and type after no round at all.
    """

    source: int
    target: int
    axis: int = 0
    backward: bool = False
    empty: tuple[tuple[int, ...], torch.dtype] = ((0,), torch.float32)


@dataclasses.dataclass(frozen=True)
class Repeat:
    """A ``Loop`` or ``Scan``: steps that run again and again, in the same slots.

    Attributes:
        steps: The body.
        most: Slot of the greatest number of rounds, where there is such a number.
        condition: Slot of whether to begin at all; empty for yes.
        next_condition: Slot of whether to go on after a round; None for always.
        number: Slot for the number of the round; None where the body does not read it.
        going: Slot for the condition as the body reads it; None where it does not.
        one_axis: Whether the body wants its number and condition with one axis.
        initial: Slots of what is carried from round to round, before the first.
        carried: Slots of the same in the body.
        results: Slots of what a round makes of it.
        outputs: All slots that are written: what is carried after the last round, then what is
            collected.
        stepped: What is gone through; the first one's length is the number of rounds.
        collected: What is collected.
        node: The node in words.
        finished: Slots that nobody reads any more afterwards.
    """

    steps: tuple[AnyStep, ...]
    most: int
    condition: int
    next_condition: int | None
    number: int | None
    going: int | None
    one_axis: bool
    initial: tuple[int, ...]
    carried: tuple[int, ...]
    results: tuple[int, ...]
    outputs: tuple[int, ...]
    stepped: tuple[Stepped, ...]
    collected: tuple[Collected, ...]
    node: str
    finished: tuple[int, ...] = ()

    @property
    def reads(self) -> tuple[int, ...]:
        """Slots that are read, from outside and inside the body."""
        found = {self.most, self.condition, *self.initial, *self.results}
        found.update(each.source for each in self.stepped)
        found.update(each.source for each in self.collected)
        if self.next_condition is not None:
            found.add(self.next_condition)
        for step in self.steps:
            found.update(step.reads)
        return tuple(found)

    def run(self, slots: Slots) -> None:
        """Run all rounds."""
        state = [slots[each] for each in self.initial]
        parts: list[list[Tensor]] = [[] for _ in self.collected]
        for number in self._rounds(slots):
            for slot, value in zip(self.carried, state, strict=True):
                slots[slot] = value
            shape = (1,) if self.one_axis else ()
            if self.number is not None:
                slots[self.number] = np.full(shape, number, np.int64)
            if self.going is not None:
                slots[self.going] = np.full(shape, True)
            for each in self.stepped:
                length = slots[each.source].shape[each.axis]
                place = length - 1 - number if each.backward else number
                slots[each.target] = slots[each.source].select(each.axis, place)
            run(self.steps, slots)
            state = [slots[each] for each in self.results]
            for collected, found in zip(self.collected, parts, strict=True):
                found.append(slots[collected.source])
            if self.next_condition is not None and not _holds(slots[self.next_condition]):
                break
        done = [*state, *map(_joined, self.collected, parts)]
        for slot, value in zip(self.outputs, done, strict=True):
            slots[slot] = value

    def _rounds(self, slots: Slots) -> Iterator[int]:
        if not _holds(slots[self.condition]):
            return
        most = slots[self.most]
        if self.stepped:
            most = slots[self.stepped[0].source].shape[self.stepped[0].axis]
        number = 0
        while most is None or number < int(np.asarray(most).reshape(())):
            yield number
            number += 1


def _holds(condition: Any) -> bool:
    """Whether a condition of one number, or none, is true."""
    if condition is None:
        return True
    array = tensor_to_host(condition) if isinstance(condition, Tensor) else condition
    return bool(np.asarray(array).reshape(()))


def _joined(collected: Collected, parts: Sequence[Tensor]) -> Tensor:
    if not parts:
        shape, kind = collected.empty
        return torch.empty(shape, dtype=kind)
    return torch.stack(list(parts[::-1] if collected.backward else parts), collected.axis)


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

    steps: tuple[AnyStep, ...]
    slots: int
    constants: tuple[tuple[int, Any], ...]
    tensors: tuple[tuple[int, str], ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    device: int
    training: int


def run(steps: Sequence[AnyStep], slots: Slots) -> None:
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
            elif isinstance(step, Repeat):
                step.run(slots)
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
