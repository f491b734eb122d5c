"""Turn a graph into a program: constants are worked out, attributes bound, slots given out.

Each value is a tensor, or a small array on the host: what Shape and Size give, and what the
operators of `HOST_BUILDERS` make of that and of constants. The choice is made here, once. Where an
operator wants the other form, a step that converts is put in.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxopt.errors import UnsupportedModelError
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Refuse
from onnxopt.training.node_view import Builder, Call, Form, NodeView, Operand
from onnxopt.training.numbers import (
    array_of,
    host_to_tensor,
    tensor_of,
    tensor_to_host,
    torch_type,
)
from onnxopt.training.operators import BUILDERS, HOST_BUILDERS, SIZES
from onnxopt.training.program import AnyStep, Branch, Collected, Program, Repeat, Step, Stepped
from onnxopt.training.stored import stored
from onnxopt.traversal import all_nodes, bodies

__all__ = ["Compiled", "Weight", "compile_graph", "module_name"]

_NOTHING, _DEVICE, _TRAINING = 0, 1, 2
#: What these make is theirs alone, and not needed for their own gradients: it may be overwritten.
_FRESH = frozenset(("Add", "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", "Sub"))
#: Constants of more elements are tensors.
_LARGEST_HOST = 64
#: From this opset on ``Scan`` has no batch axis and no lengths of its own.
_PLAIN_SCAN = 9
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


@dataclasses.dataclass
class _Draft:
    """A step that is not final.

    Attributes:
        step: The step.
        in_place: Does the same in the memory of the first input.
        fresh: Whether its output may be overwritten by its only reader.
    """

    step: AnyStep
    in_place: Callable[..., Any] | None = None
    fresh: bool = False


class _Constants(Mapping[ir.Value, NDArray[Any]]):
    """Numbers of values that are the same in every run; those of the file are read on demand."""

    def __init__(self, weights: Mapping[ir.Value, Weight]) -> None:
        self._weights = weights
        self._known: dict[ir.Value, NDArray[Any]] = {}

    def __getitem__(self, value: ir.Value) -> NDArray[Any]:
        if value not in self._known:
            tensor = None if value in self._weights else stored(value)
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                raise KeyError(value)
            self._known[value] = np.asarray(tensor.numpy())
        return self._known[value]

    def __contains__(self, value: object) -> bool:
        if value in self._known:
            return True
        if not isinstance(value, ir.Value) or value in self._weights:
            return False
        tensor = stored(value)
        return tensor is not None and tensor.dtype != ir.DataType.STRING

    def __iter__(self) -> Iterator[ir.Value]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, value: ir.Value, array: NDArray[Any]) -> None:
        self._known[value] = array


class _Scope:
    """Where the values of a graph are; a body sees those around it."""

    def __init__(self, outer: _Scope | None = None) -> None:
        self.tensors: dict[ir.Value, int] = {} if outer is None else dict(outer.tensors)
        self.hosts: dict[ir.Value, int] = {} if outer is None else dict(outer.hosts)
        self.drafts: list[_Draft] = []


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
    return _Compiler(weights, opset).compile(graph, inputs, outputs)


class _Compiler:
    def __init__(self, weights: Sequence[Weight], opset: int) -> None:
        self._opset = opset
        self._weights = {weight.value: weight for weight in weights}
        self._constants = _Constants(self._weights)
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
        scope = _Scope()
        given = []
        for value in inputs:
            scope.tensors[value] = self._new_slot()
            given.append(scope.tensors[value])
        self._graph(graph, scope, _needed(graph, outputs))
        if self._problems:
            raise UnsupportedModelError(_listed(self._problems))
        results = [self._output(value, scope) for value in outputs]
        steps = _finished(scope.drafts, results)
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

    def _new_slot(self) -> int:
        return next(self._numbers)

    def _graph(self, graph: ir.Graph, scope: _Scope, needed: set[ir.Node]) -> None:
        for node in graph:
            if node in needed:
                try:
                    self._node(node, scope)
                except Refuse as refusal:
                    self._problems.append(f"{_described(node)}: {refusal}")
                    for value in node.outputs:  # so that what follows is looked at, too
                        scope.tensors[value] = _NOTHING

    def _node(self, node: ir.Node, scope: _Scope) -> None:
        if node.op_type == "Constant" and is_standard(node):
            if node.outputs[0] not in self._weights and node.outputs[0] not in self._constants:
                raise Refuse("a constant that is no tensor of numbers")
            return
        if node.op_type == "If" and is_standard(node):
            self._if(node, scope)
            return
        if node.op_type in ("Loop", "Scan") and is_standard(node):
            (self._loop if node.op_type == "Loop" else self._scan)(node, scope)
            return
        present = [value for value in node.inputs if value is not None]
        view = NodeView(node, self._opset, self._constants, self._shadows, self._ranks)
        if is_standard(node) and present and all(value in self._constants for value in present):
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
        return value in self._constants and self._constants[value].size <= _LARGEST_HOST

    def _fold(self, node: ir.Node, call: Call) -> None:
        """Work out a node all of whose inputs are constant."""
        arguments: list[Any] = []
        for operand in call.operands:
            array = None if operand.value is None else self._constants[operand.value]
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
            self._constants.add(value, array_of(each) if isinstance(each, Tensor) else each)

    def _emit(self, node: ir.Node, call: Call, scope: _Scope, places: dict[ir.Value, int]) -> None:
        inputs = tuple(self._slot(operand, scope) for operand in call.operands)
        outputs = []
        for value in node.outputs:
            places[value] = self._new_slot()
            outputs.append(places[value])
        step = Step(call.function, inputs, tuple(outputs), _described(node))
        fresh = node.op_type in _FRESH and is_standard(node) and places is scope.tensors
        scope.drafts.append(_Draft(step, call.in_place, fresh))

    def _slot(self, operand: Operand, scope: _Scope) -> int:
        if operand.form is Form.DEVICE:
            return _DEVICE
        if operand.form is Form.TRAINING:
            return _TRAINING
        value = operand.value
        if value is None:
            return _NOTHING
        if operand.form is Form.TENSOR:
            return self._tensor(value, scope)
        return self._host(value, scope)

    def _tensor(self, value: ir.Value, scope: _Scope) -> int:
        if value in scope.tensors:
            return scope.tensors[value]
        if value in self._bound_tensors:
            return self._bound_tensors[value]
        if value in scope.hosts:
            target = self._new_slot()
            step = Step(
                host_to_tensor, (scope.hosts[value], _DEVICE), (target,), f"sizes '{value.name}'"
            )
            scope.drafts.append(_Draft(step))
            scope.tensors[value] = target
            return target
        slot = self._new_slot()
        weight = self._weights.get(value)
        name = self._buffer(value) if weight is None else weight.name
        self._tensors.append((slot, name))
        self._bound_tensors[value] = slot
        return slot

    def _buffer(self, value: ir.Value) -> str:
        if value not in self._constants:
            raise Refuse(f"it reads '{value.name}', which nothing makes")
        torch_type(ir.DataType.from_numpy(self._constants[value].dtype))
        name = module_name(value.name or "constant", self._names)
        self._buffers[name] = tensor_of(self._constants[value])
        return name

    def _host(self, value: ir.Value, scope: _Scope) -> int:
        if value in scope.hosts:
            return scope.hosts[value]
        if value in self._bound_hosts:
            return self._bound_hosts[value]
        if value in self._constants:
            slot = self._new_slot()
            self._arrays.append((slot, self._constants[value]))
            self._bound_hosts[value] = slot
            return slot
        source, target = self._tensor(value, scope), self._new_slot()
        step = Step(tensor_to_host, (source,), (target,), f"sizes '{value.name}'")
        scope.drafts.append(_Draft(step))
        scope.hosts[value] = target
        return target

    def _if(self, node: ir.Node, scope: _Scope) -> None:
        (condition,) = node.inputs
        assert condition is not None
        branches = [node.attributes[name].as_graph() for name in ("else_branch", "then_branch")]
        if condition in self._constants:
            taken = branches[bool(self._constants[condition].reshape(()))]
            self._graph(taken, scope, _needed(taken, taken.outputs))
            for value, inner in zip(node.outputs, taken.outputs, strict=True):
                if inner in self._constants:
                    self._constants.add(value, self._constants[inner])
                elif inner in scope.hosts:
                    scope.hosts[value] = scope.hosts[inner]
                else:
                    scope.tensors[value] = self._tensor(inner, scope)
            return
        place = self._slot(Operand(condition, Form.HOST), scope)
        choices, results = [], []
        for branch in branches:
            inside = _Scope(scope)
            self._graph(branch, inside, _needed(branch, branch.outputs))
            given = [self._tensor(value, inside) for value in branch.outputs]
            choices.append(_finished(inside.drafts, given))
            results.append(tuple(given))
        outputs = []
        for value in node.outputs:
            scope.tensors[value] = self._new_slot()
            outputs.append(scope.tensors[value])
        step = Branch(
            place,
            (choices[0], choices[1]),
            (results[0], results[1]),
            tuple(outputs),
            _described(node),
        )
        scope.drafts.append(_Draft(step))

    def _loop(self, node: ir.Node, scope: _Scope) -> None:
        body = node.attributes["body"].as_graph()
        most, going, *initial = node.inputs
        number, condition, *carried = body.inputs
        inside = _Scope(scope)
        for value in (number, condition):
            inside.hosts[value] = self._new_slot()
        first = tuple(self._tensor(_given(value), scope) for value in initial)
        begin = self._slot(Operand(going, Form.HOST), scope)
        limit = self._slot(Operand(most, Form.HOST), scope)
        places = self._carried(carried, inside)
        self._graph(body, inside, _needed(body, body.outputs))
        next_condition = self._host(body.outputs[0], inside)
        results = tuple(self._tensor(value, inside) for value in body.outputs[1:])
        count = len(carried)
        self._repeat(
            node,
            scope,
            Repeat(
                _finished(inside.drafts, [next_condition, *results]),
                most=limit,
                condition=begin,
                next_condition=next_condition,
                number=inside.hosts[number],
                going=inside.hosts[condition],
                one_axis=number.shape is not None and len(number.shape) == 1,
                initial=first,
                carried=places,
                results=results[:count],
                outputs=(),
                stepped=(),
                collected=tuple(
                    Collected(slot, 0, empty=_nothing(value, 0))
                    for slot, value in zip(results[count:], body.outputs[1 + count :], strict=True)
                ),
                node=_described(node),
            ),
        )

    def _scan(self, node: ir.Node, scope: _Scope) -> None:
        if self._opset < _PLAIN_SCAN:
            raise Refuse(f"its form of opset {self._opset}, with a batch axis of its own")
        body = node.attributes["body"].as_graph()
        view = NodeView(node, self._opset, self._constants, self._shadows, self._ranks)
        scanned = view.int_attribute("num_scan_inputs", 0)
        count = len(node.inputs) - scanned
        kept = len(body.outputs) - count
        axes = view.ints_attribute("scan_input_axes") or (0,) * scanned
        ways = view.ints_attribute("scan_input_directions") or (0,) * scanned
        output_axes = view.ints_attribute("scan_output_axes") or (0,) * kept
        output_ways = view.ints_attribute("scan_output_directions") or (0,) * kept
        inside = _Scope(scope)
        given = tuple(self._tensor(_given(value), scope) for value in node.inputs)
        places = self._carried(body.inputs, inside)
        self._graph(body, inside, _needed(body, body.outputs))
        results = tuple(self._tensor(value, inside) for value in body.outputs)
        self._repeat(
            node,
            scope,
            Repeat(
                _finished(inside.drafts, results),
                most=_NOTHING,
                condition=_NOTHING,
                next_condition=None,
                number=None,
                going=None,
                one_axis=False,
                initial=given[:count],
                carried=places[:count],
                results=results[:count],
                outputs=(),
                stepped=tuple(
                    Stepped(source, target, axis, bool(way))
                    for source, target, axis, way in zip(
                        given[count:], places[count:], axes, ways, strict=True
                    )
                ),
                collected=tuple(
                    Collected(slot, 0, axis, bool(way), _nothing(value, axis))
                    for slot, axis, way, value in zip(
                        results[count:],
                        output_axes,
                        output_ways,
                        body.outputs[count:],
                        strict=True,
                    )
                ),
                node=_described(node),
            ),
        )

    def _carried(self, values: Sequence[ir.Value], inside: _Scope) -> tuple[int, ...]:
        """Slots for what a body is given in each round."""
        for value in values:
            inside.tensors[value] = self._new_slot()
        return tuple(inside.tensors[value] for value in values)

    def _repeat(self, node: ir.Node, scope: _Scope, step: Repeat) -> None:
        """Put in a loop, with slots for its outputs."""
        outputs = []
        for value in node.outputs:
            scope.tensors[value] = self._new_slot()
            outputs.append(scope.tensors[value])
        count = len(step.initial)
        collected = tuple(
            dataclasses.replace(each, target=slot)
            for each, slot in zip(step.collected, outputs[count:], strict=True)
        )
        step = dataclasses.replace(step, outputs=tuple(outputs), collected=collected)
        scope.drafts.append(_Draft(step))

    def _output(self, value: ir.Value, scope: _Scope) -> int:
        """The slot of an output; integers that were carried as floats become integers."""
        slot = self._tensor(value, scope)
        if value.dtype is None or not value.dtype.is_integer():
            return slot
        kind, target = torch_type(value.dtype), self._new_slot()

        def as_integers(x: Tensor) -> Tensor:
            return (torch.round(x) if x.is_floating_point() else x).to(kind)

        step = Step(as_integers, (slot,), (target,), f"output '{value.name}'")
        scope.drafts.append(_Draft(step))
        return target


def _given(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise Refuse("something that is carried from round to round is not given")
    return value


def _nothing(value: ir.Value, axis: int) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and type of what is collected in no round: sizes that are not known are 0."""
    known = [] if value.shape is None else list(value.shape)
    sizes = [size if isinstance(size, int) else 0 for size in known]
    place = axis % (len(sizes) + 1)
    kind = torch.float32 if value.dtype is None else torch_type(value.dtype)
    return (*sizes[:place], 0, *sizes[place:]), kind


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


def _needed(graph: ir.Graph, outputs: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes of a graph that some values depend on."""
    needed: set[ir.Node] = set()
    pending = [value.producer() for value in outputs]
    while pending:
        node = pending.pop()
        if node is None or node in needed or node.graph is not graph:
            continue
        needed.add(node)
        pending.extend(value.producer() for value in node.inputs if value is not None)
        for body in bodies(node):
            pending.extend(value.producer() for value in body.outputs)
            for inner in all_nodes(body):
                pending.extend(value.producer() for value in inner.inputs if value is not None)
    return needed


def _finished(drafts: Sequence[_Draft], results: Sequence[int]) -> tuple[AnyStep, ...]:
    """Leave out what nobody reads, work in place where that is safe, and free what is done with."""
    wanted, kept = set(results), []
    for draft in reversed(drafts):
        if wanted.isdisjoint(draft.step.outputs):
            continue
        wanted.update(draft.step.reads)
        kept.append(draft)
    kept.reverse()
    readers: dict[int, int] = {}
    for draft in kept:
        for slot in draft.step.reads:
            readers[slot] = readers.get(slot, 0) + 1
    fresh = {slot for draft in kept if draft.fresh for slot in draft.step.outputs}
    own = {slot for draft in kept for slot in draft.step.outputs}
    last: dict[int, int] = {}
    for place, draft in enumerate(kept):
        for slot in (*draft.step.outputs, *draft.step.reads):
            last[slot] = place
    finished: list[list[int]] = [[] for _ in kept]
    for slot, place in last.items():
        if slot in own and slot not in results:
            finished[place].append(slot)
    steps: list[AnyStep] = []
    for draft, slots in zip(kept, finished, strict=True):
        step = dataclasses.replace(draft.step, finished=tuple(slots))
        if draft.in_place is not None and isinstance(step, Step):
            source = step.inputs[0]
            if source in fresh and readers[source] == 1 and source not in results:
                step = dataclasses.replace(step, function=draft.in_place)
        steps.append(step)
    return tuple(steps)


def _described(node: ir.Node) -> str:
    if node.name:
        return f"{node.op_type} '{node.name}'"
    made = next((value.name for value in node.outputs if value.name), None)
    return node.op_type if made is None else f"{node.op_type} that makes '{made}'"


def _listed(problems: Sequence[str]) -> str:
    count = len(problems)
    shown = "; ".join(problems[:_PROBLEMS_LISTED])
    more = f"; and {count - _PROBLEMS_LISTED} more" if count > _PROBLEMS_LISTED else ""
    nodes = "one node" if count == 1 else f"{count} nodes"
    return f"{nodes} cannot be turned into PyTorch: {shown}{more}"
