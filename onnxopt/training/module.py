"""The PyTorch module that runs an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from onnxopt.analysis.values import dims
from onnxopt.errors import FeedError
from onnxopt.training.compiler import Compiled, Weight
from onnxopt.training.program import run

__all__ = ["OnnxModule"]


class OnnxModule(torch.nn.Module):
    """A graph as a module: ``module(x)``, ``module(first, second)`` or ``module(**feeds)``.

    It gives one tensor when the graph has one output, else a tuple. Sizes may differ from call to
    call where the graph allows it. The names of parameters are those of the graph, with ``/`` for
    each dot, since PyTorch keeps dots for itself; `weights` has them under their own names.

    Attributes:
        input_names: Inputs in order.
        output_names: Outputs in order.
        free_axes: For each input the axes whose size is free in the model.
        batch_statistics: Whether BatchNormalization takes the statistics of the batch, and moves
            the running ones, while the module trains.
        integer_weights: Names of weights that the model holds as integers.
    """

    def __init__(
        self,
        compiled: Compiled,
        weights: Sequence[Weight],
        inputs: Sequence[ir.Value],
        output_names: Sequence[str],
        batch_statistics: bool,
    ) -> None:
        super().__init__()
        self.input_names = tuple(str(value.name) for value in inputs)
        self.free_axes = tuple(_free_axes(value) for value in inputs)
        self.output_names = tuple(output_names)
        self.batch_statistics = batch_statistics
        self.integer_weights = frozenset(
            str(weight.value.name) for weight in weights if weight.shadow
        )
        self._program = compiled.program
        self._names = {str(weight.value.name): weight.name for weight in weights}
        for weight in weights:
            if weight.trainable:
                self.register_parameter(weight.name, torch.nn.Parameter(weight.tensor))
            else:
                self.register_buffer(weight.name, weight.tensor)
        for name, tensor in compiled.buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def weights(self) -> dict[str, Tensor]:
        """What `write_back` writes, by name in the graph: parameters, and running statistics."""
        return {name: self._tensor(inner) for name, inner in self._names.items()}

    def module_name(self, name: str) -> str:
        """The name in this module of a weight of the graph."""
        return self._names[name]

    def _tensor(self, name: str) -> Any:
        parameter = self._parameters.get(name)
        return self._buffers[name] if parameter is None else parameter

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """Run the graph.

        Raises:
            FeedError: Inputs are missing or unknown.
        """
        program = self._program
        slots: list[Any] = [None] * program.slots
        for slot, array in program.constants:
            slots[slot] = array
        for slot, name in program.tensors:
            slots[slot] = self._tensor(name)
        given = self._ordered(inputs, named)
        for slot, tensor in zip(program.inputs, given, strict=True):
            slots[slot] = tensor
        slots[program.device] = given[0].device if given else torch.device("cpu")
        slots[program.training] = self.training and self.batch_statistics
        run(program.steps, slots)
        results = tuple(slots[slot] for slot in program.outputs)
        return results[0] if len(results) == 1 else results

    def _ordered(self, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> list[Tensor]:
        rest = self.input_names[len(inputs) :]
        if len(inputs) > len(self.input_names) or set(named) != set(rest):
            raise FeedError(
                f"the model takes the inputs {', '.join(self.input_names)}; given were "
                f"{len(inputs)} by position and {', '.join(named) or 'none'} by name"
            )
        return [*inputs, *(named[name] for name in rest)]


def _free_axes(value: ir.Value) -> tuple[int, ...]:
    sizes = dims(value) or ()
    return tuple(axis for axis, size in enumerate(sizes) if not isinstance(size, int))
