"""If, Loop and Scan as steps that run other steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from onnxopt.rewriting import Refuse
from onnxopt.training.drafts import Draft, Scope, described, finished
from onnxopt.training.node_view import Form, Operand
from onnxopt.training.numbers import torch_type
from onnxopt.training.program import NOTHING, Branch, Collected, Repeat, Stepped

if TYPE_CHECKING:
    from onnxopt.training.compiler import Compiler

__all__ = ["compile_if", "compile_loop", "compile_scan"]

#: From this opset on ``Scan`` has no batch axis and no lengths of its own.
_PLAIN_SCAN = 9


def compile_if(compiler: Compiler, node: ir.Node, scope: Scope) -> None:
    """Put in both branches, or the one that is always taken."""
    (condition,) = node.inputs
    assert condition is not None
    branches = [node.attributes[name].as_graph() for name in ("else_branch", "then_branch")]
    if condition in compiler.constants:
        taken = branches[bool(compiler.constants[condition].reshape(()))]
        compiler.graph(taken, scope, taken.outputs)
        for value, inner in zip(node.outputs, taken.outputs, strict=True):
            if inner in compiler.constants:
                compiler.constants.add(value, compiler.constants[inner])
            elif inner in scope.hosts:
                scope.hosts[value] = scope.hosts[inner]
            else:
                scope.tensors[value] = compiler.tensor(inner, scope)
        return
    place = compiler.slot(Operand(condition, Form.HOST), scope)
    choices, results = [], []
    for branch in branches:
        inside = Scope(scope)
        compiler.graph(branch, inside, branch.outputs)
        given = [compiler.tensor(value, inside) for value in branch.outputs]
        choices.append(finished(inside.drafts, given))
        results.append(tuple(given))
    outputs = []
    for value in node.outputs:
        scope.tensors[value] = compiler.new_slot()
        outputs.append(scope.tensors[value])
    step = Branch(
        place,
        (choices[0], choices[1]),
        (results[0], results[1]),
        tuple(outputs),
        described(node),
    )
    scope.drafts.append(Draft(step))


def compile_loop(compiler: Compiler, node: ir.Node, scope: Scope) -> None:
    """Put in a Loop."""
    body = node.attributes["body"].as_graph()
    most, going, *initial = node.inputs
    number, condition, *carried = body.inputs
    inside = Scope(scope)
    for value in (number, condition):
        inside.hosts[value] = compiler.new_slot()
    first = tuple(compiler.tensor(_given(value), scope) for value in initial)
    begin = compiler.slot(Operand(going, Form.HOST), scope)
    limit = compiler.slot(Operand(most, Form.HOST), scope)
    places = _carried(compiler, carried, inside)
    compiler.graph(body, inside, body.outputs)
    next_condition = compiler.host(body.outputs[0], inside)
    results = tuple(compiler.tensor(value, inside) for value in body.outputs[1:])
    count = len(carried)
    _repeat(
        compiler,
        node,
        scope,
        Repeat(
            finished(inside.drafts, [next_condition, *results]),
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
            node=described(node),
        ),
    )


def compile_scan(compiler: Compiler, node: ir.Node, scope: Scope) -> None:
    """Put in a Scan.

    Raises:
        Refuse: When it is of an opset in which it is something else.
    """
    if compiler.opset < _PLAIN_SCAN:
        raise Refuse(f"its form of opset {compiler.opset}, with a batch axis of its own")
    body = node.attributes["body"].as_graph()
    view = compiler.view(node)
    scanned = view.int_attribute("num_scan_inputs", 0)
    count = len(node.inputs) - scanned
    kept = len(body.outputs) - count
    axes = view.ints_attribute("scan_input_axes") or (0,) * scanned
    ways = view.ints_attribute("scan_input_directions") or (0,) * scanned
    output_axes = view.ints_attribute("scan_output_axes") or (0,) * kept
    output_ways = view.ints_attribute("scan_output_directions") or (0,) * kept
    inside = Scope(scope)
    given = tuple(compiler.tensor(_given(value), scope) for value in node.inputs)
    places = _carried(compiler, body.inputs, inside)
    compiler.graph(body, inside, body.outputs)
    results = tuple(compiler.tensor(value, inside) for value in body.outputs)
    _repeat(
        compiler,
        node,
        scope,
        Repeat(
            finished(inside.drafts, results),
            most=NOTHING,
            condition=NOTHING,
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
            node=described(node),
        ),
    )


def _carried(compiler: Compiler, values: Sequence[ir.Value], inside: Scope) -> tuple[int, ...]:
    """Slots for what a body is given in each round."""
    for value in values:
        inside.tensors[value] = compiler.new_slot()
    return tuple(inside.tensors[value] for value in values)


def _repeat(compiler: Compiler, node: ir.Node, scope: Scope, step: Repeat) -> None:
    """Put in a loop, with slots for its outputs."""
    outputs = []
    for value in node.outputs:
        scope.tensors[value] = compiler.new_slot()
        outputs.append(scope.tensors[value])
    count = len(step.initial)
    collected = tuple(
        dataclasses.replace(each, target=slot)
        for each, slot in zip(step.collected, outputs[count:], strict=True)
    )
    step = dataclasses.replace(step, outputs=tuple(outputs), collected=collected)
    scope.drafts.append(Draft(step))


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
