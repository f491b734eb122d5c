"""Turn a graph into a program: constants are worked out, attributes bound, slots given out.

Each value is a tensor, or a small array on the host: what Shape and Size give, and what the
operators of `HOST_BUILDERS` make of that and of constants. The choice is made here, once. Where an
operator wants the other form, a step that converts is put in.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from onnxopt.errors import UnsupportedModelError
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Refuse
from onnxopt.training.constants import Constants
from onnxopt.training.control_flow import compile_if, compile_loop, compile_scan
from onnxopt.training.drafts import Draft, Scope, described, finished, needed
from onnxopt.training.node_view import Builder, Call, Form, NodeView, Operand
from onnxopt.training.numbers import (
    array_of,
    host_to_tensor,
    tensor_of,
    tensor_to_host,
    torch_type,
)
from onnxopt.training.operators import BUILDERS, HOST_BUILDERS, SIZES
from onnxopt.training.program import NOTHING, Program, Step

__all__ = ["Compiled", "Compiler", "Weight", "compile_graph", "module_name"]

_DEVICE, _TRAINING = 1, 2
#: What these make is theirs alone, and not needed for their own gradients: it may be overwritten.
_FRESH = frozenset(("Add", "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", "Sub"))
#: Constants of more elements are tensors.
_LARGEST_HOST = 64
#: How many problems a message lists in full.
_PROBLEMS_LISTED = 20


@dataclasses.dataclass(frozen=True)
class Weight:
    """A tensor of the module.

    Attributes:
        value: The value of the graph.
        tensor: Its numbers; in float where the model holds integers on a grid.
        name: Its name in the module.
        trainable: Whether it is a parameter; else it is a buffer that is written back.
        shadow: Whether it stands for integers that DequantizeLinear reads.
    """

    value: ir.Value
    tensor: Tensor
    name: str
    trainable: bool = True
    shadow: bool = False


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What `compile_graph` gives.

    Attributes:
        program: The program.
        buffers: Constants that it reads as tensors, by name in the module.
    """

    program: Program
    buffers: dict[str, Tensor]


def compile_graph(
    graph: ir.Graph,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    weights: Sequence[Weight],
    opset: int,
) -> Compiled:
    """Compile what some values of a graph need.

    Args:
        graph: The main graph; local functions are inlined.
        inputs: What the program is fed with.
        outputs: What it gives.
        weights: Parameters and buffers that may change.
        opset: Version of the standard opset.

    Raises:
        UnsupportedModelError: Some nodes cannot be turned into PyTorch; all are listed.
    """
    return Compiler(weights, opset).compile(graph, inputs, outputs)


class Compiler:
    """Compiles graphs, and the bodies in them, into steps on numbered slots.

    Args:
        weights: Parameters and buffers that may change.
        opset: Version of the standard opset.

    Attributes:
        opset: That version.
        constants: Numbers of values that are the same in every run.
    """

    def __init__(self, weights: Sequence[Weight], opset: int) -> None:
        self.opset = opset
        self._weights = {weight.value: weight for weight in weights}
        self.constants = Constants(self._weights)
        self._numbers = itertools.count(_TRAINING + 1)
        self._problems: list[str] = []
        self._buffers: dict[str, Tensor] = {}
        self._arrays: list[tuple[int, Any]] = []
        self._tensors: list[tuple[int, str]] = []
        self._bound_tensors: dict[ir.Value, int] = {}
        self._bound_hosts: dict[ir.Value, int] = {}
        self._names = {weight.name for weight in weights}
        self._shadows = frozenset(weight.value for weight in weights if weight.shadow)
        self._ranks: set[ir.Value] = set()

    def compile(
        self, graph: ir.Graph, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
    ) -> Compiled:
        """See `compile_graph`."""
        scope = Scope()
        given = []
        for value in inputs:
            scope.tensors[value] = self.new_slot()
            given.append(scope.tensors[value])
        self.graph(graph, scope, outputs)
        if self._problems:
            raise UnsupportedModelError(_listed(self._problems))
        results = [self._output(value, scope) for value in outputs]
        steps = finished(scope.drafts, results)
        program = Program(
            steps,
            next(self._numbers),
            tuple(self._arrays),
            tuple(self._tensors),
            tuple(given),
            tuple(results),
            _DEVICE,
            _TRAINING,
        )
        return Compiled(program, self._buffers)

    def new_slot(self) -> int:
        """A place for a value."""
        return next(self._numbers)

    def view(self, node: ir.Node) -> NodeView:
        """A node as builders see it."""
        return NodeView(node, self.opset, self.constants, self._shadows, self._ranks)

    def graph(self, graph: ir.Graph, scope: Scope, outputs: Sequence[ir.Value]) -> None:
        """Put in the steps that some values of a graph need."""
        wanted = needed(graph, outputs)
        for node in graph:
            if node in wanted:
                try:
                    self._node(node, scope)
                except Refuse as refusal:
                    self._problems.append(f"{described(node)}: {refusal}")
                    for value in node.outputs:  # so that what follows is looked at, too
                        scope.tensors[value] = NOTHING

    def _node(self, node: ir.Node, scope: Scope) -> None:
        if node.op_type == "Constant" and is_standard(node):
            if node.outputs[0] not in self._weights and node.outputs[0] not in self.constants:
                raise Refuse("a constant that is no tensor of numbers")
            return
        if node.op_type == "If" and is_standard(node):
            compile_if(self, node, scope)
            return
        if node.op_type in ("Loop", "Scan") and is_standard(node):
            (compile_loop if node.op_type == "Loop" else compile_scan)(self, node, scope)
            return
        present = [value for value in node.inputs if value is not None]
        view = self.view(node)
        if is_standard(node) and present and all(value in self.constants for value in present):
            self._fold(node, _built(_builder(node), view))
            return
        host = all(value in scope.hosts or self._is_small(value) for value in present)
        if host and is_standard(node) and node.op_type in HOST_BUILDERS:
            try:
                call = _built(HOST_BUILDERS[node.op_type], view)
            except Refuse:
                pass  # then on tensors
            else:
                self._emit(node, call, scope, scope.hosts)
                if node.op_type == "Shape":
                    self._ranks.update(node.outputs)
                return
        call = _built(_builder(node), view)
        self._emit(node, call, scope, scope.hosts if node.op_type in SIZES else scope.tensors)

    def _is_small(self, value: ir.Value) -> bool:
        """Whether a value is constant, and no larger than what is made of sizes."""
        return value in self.constants and self.constants[value].size <= _LARGEST_HOST

    def _fold(self, node: ir.Node, call: Call) -> None:
        """Work out a node all of whose inputs are constant."""
        arguments: list[Any] = []
        for operand in call.operands:
            array = None if operand.value is None else self.constants[operand.value]
            match operand.form:
                case Form.TENSOR:
                    arguments.append(None if array is None else tensor_of(array))
                case Form.HOST:
                    arguments.append(array)
                case Form.DEVICE:
                    arguments.append(torch.device("cpu"))
                case Form.TRAINING:
                    arguments.append(False)
        with torch.no_grad():
            try:
                result = call.function(*arguments)
            except Exception as error:
                raise Refuse(f"it cannot be computed: {str(error).splitlines()[0]}") from error
        results = (result,) if len(node.outputs) == 1 else result
        for value, each in zip(node.outputs, results, strict=True):
            self.constants.add(value, array_of(each) if isinstance(each, Tensor) else each)

    def _emit(self, node: ir.Node, call: Call, scope: Scope, places: dict[ir.Value, int]) -> None:
        inputs = tuple(self.slot(operand, scope) for operand in call.operands)
        outputs = []
        for value in node.outputs:
            places[value] = self.new_slot()
            outputs.append(places[value])
        step = Step(call.function, inputs, tuple(outputs), described(node))
        fresh = node.op_type in _FRESH and is_standard(node) and places is scope.tensors
        scope.drafts.append(Draft(step, call.in_place, fresh))

    def slot(self, operand: Operand, scope: Scope) -> int:
        """Where an operand is, in the form that is wanted."""
        if operand.form is Form.DEVICE:
            return _DEVICE
        if operand.form is Form.TRAINING:
            return _TRAINING
        value = operand.value
        if value is None:
            return NOTHING
        if operand.form is Form.TENSOR:
            return self.tensor(value, scope)
        return self.host(value, scope)

    def tensor(self, value: ir.Value, scope: Scope) -> int:
        """Where a value is as a tensor."""
        if value in scope.tensors:
            return scope.tensors[value]
        if value in self._bound_tensors:
            return self._bound_tensors[value]
        if value in scope.hosts:
            target = self.new_slot()
            step = Step(
                host_to_tensor, (scope.hosts[value], _DEVICE), (target,), f"sizes '{value.name}'"
            )
            scope.drafts.append(Draft(step))
            scope.tensors[value] = target
            return target
        slot = self.new_slot()
        weight = self._weights.get(value)
        name = self._buffer(value) if weight is None else weight.name
        self._tensors.append((slot, name))
        self._bound_tensors[value] = slot
        return slot

    def _buffer(self, value: ir.Value) -> str:
        if value not in self.constants:
            raise Refuse(f"it reads '{value.name}', which nothing makes")
        torch_type(ir.DataType.from_numpy(self.constants[value].dtype))
        name = module_name(value.name or "constant", self._names)
        self._buffers[name] = tensor_of(self.constants[value])
        return name

    def host(self, value: ir.Value, scope: Scope) -> int:
        """Where a value is as an array on the host."""
        if value in scope.hosts:
            return scope.hosts[value]
        if value in self._bound_hosts:
            return self._bound_hosts[value]
        if value in self.constants:
            slot = self.new_slot()
            self._arrays.append((slot, self.constants[value]))
            self._bound_hosts[value] = slot
            return slot
        source, target = self.tensor(value, scope), self.new_slot()
        step = Step(tensor_to_host, (source,), (target,), f"sizes '{value.name}'")
        scope.drafts.append(Draft(step))
        scope.hosts[value] = target
        return target

    def _output(self, value: ir.Value, scope: Scope) -> int:
        """The slot of an output; integers that were carried as floats become integers."""
        slot = self.tensor(value, scope)
        if value.dtype is None or not value.dtype.is_integer():
            return slot
        kind, target = torch_type(value.dtype), self.new_slot()

        def as_integers(x: Tensor) -> Tensor:
            return (torch.round(x) if x.is_floating_point() else x).to(kind)

        step = Step(as_integers, (slot,), (target,), f"output '{value.name}'")
        scope.drafts.append(Draft(step))
        return target


def _builder(node: ir.Node) -> Builder:
    if not is_standard(node):
        raise Refuse(f"operator of the domain {node.domain}")
    builder = BUILDERS.get(node.op_type) or SIZES.get(node.op_type)
    if builder is None:
        raise Refuse("operator is not supported")
    return builder


def _built(builder: Builder, view: NodeView) -> Call:
    call = builder(view)
    unread = view.unread_attributes()
    if unread:
        raise Refuse(f"attribute {unread[0]} is not known")
    return call


def module_name(name: str, taken: set[str]) -> str:
    """A name that a module's tensor can have; it is added to those that are taken.

    PyTorch keeps dots for modules inside modules and wants no empty names.
    """
    base = name.replace(".", "/") or "tensor"
    found = base
    for number in itertools.count(2):
        if found not in taken and not hasattr(torch.nn.Module, found) and found != "training":
            break
        found = f"{base}#{number}"
    taken.add(found)
    return found


def _listed(problems: Sequence[str]) -> str:
    count = len(problems)
    shown = "; ".join(problems[:_PROBLEMS_LISTED])
    more = f"; and {count - _PROBLEMS_LISTED} more" if count > _PROBLEMS_LISTED else ""
    nodes = "one node" if count == 1 else f"{count} nodes"
    return f"{nodes} cannot be turned into PyTorch: {shown}{more}"
