"""Products of two computed tensors: queries times keys, attention times values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute
from onnxopt.channels.atoms import Ids
from onnxopt.channels.followers import AxisRef
from onnxopt.channels.known import Known, Transfer
from onnxopt.channels.pairings import Contraction, Mixture
from onnxopt.channels.tracer import Tracer
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Refuse

__all__ = ["product_of_two"]


def product_of_two(node: ir.Node, tracer: Tracer) -> None:
    """A MatMul of two computed tensors.

    Followed are two kinds: a sum over channels that both have along the axis that is summed over,
    and a sum over places, of channels of one factor weighted by the other. Batch axes may hold
    channels (heads), the same number in both factors.
    """
    left, right = node.inputs
    assert left is not None
    assert right is not None
    one, other = tracer.of(left), tracer.of(right)
    if one is None and other is None:
        return
    rank = max(tracer.rank(left), tracer.rank(right))
    if tracer.rank(left) != tracer.rank(right):
        raise Refuse("a product of tensors of different ranks")
    ones = np.ones((1,) * rank, np.int64)
    shapes = [(ones if each is None else each).shape for each in (one, other)]
    batch, rows, columns = range(rank - 2), rank - 2, rank - 1
    if one is not None and other is not None and shapes[0][columns] > 1:
        _contraction(node, tracer, one, other)
        return
    if shapes[0][columns] > 1 or shapes[1][rows] > 1:
        raise Refuse("summed with a tensor whose channels are not followed")
    if shapes[0][rows] > 1 and shapes[1][columns] > 1:
        raise Refuse("a product with channels along both axes")
    values = right if shapes[0][rows] == 1 else left
    weights = left if values is right else right
    mixed, heads = tracer.of(values), tracer.of(weights)
    if mixed is None or any(mixed.shape[axis] > 1 for axis in batch) != (heads is not None):
        raise Refuse("weighted by a tensor whose channels are not followed")
    if heads is not None and heads.shape[:-2] != mixed.shape[:-2]:
        raise Refuse("weighted by a tensor whose channels are not followed")
    output = node.outputs[0]
    averages = weights is left and _rows_add_up_to_one(left)
    tracer.emit(output, mixed, [weights, values], _mixed(averages))
    if heads is not None:
        tracer.pairings.append(Mixture(node, heads, mixed, output))
        _tie(tracer, [weights, values, output], mixed, batch)


def _contraction(node: ir.Node, tracer: Tracer, one: Ids, other: Ids) -> None:
    left, right, output = node.inputs[0], node.inputs[1], node.outputs[0]
    assert left is not None
    assert right is not None
    turned = other.swapaxes(-1, -2)
    if one.shape != turned.shape or one.shape[-2] != 1:
        raise Refuse("a product with channels along both axes")
    tracer.unite(one, turned)
    batch = one.shape[:-2]
    made = tracer.fresh(int(np.prod(batch))).reshape(*batch, 1, 1)
    followed = made if made.size > 1 else None
    tracer.pairings.append(Contraction(node, one, followed))
    if followed is None:
        tracer.only_counted(left)
        tracer.only_counted(right)
        return
    tracer.emit(output, made, [left, right], lambda known: None)
    _tie(tracer, [left, right, output], made, range(len(batch)))


def _tie(tracer: Tracer, values: Sequence[ir.Value], ids: Ids, batch: range) -> None:
    """Say that heads must be the same in all of these values."""
    for axis in batch:
        if ids.shape[axis] > 1:
            tracer.ties.append(tuple(AxisRef(value, axis) for value in values))


def _rows_add_up_to_one(value: ir.Value) -> bool:
    """Whether a value is a Softmax over its last axis."""
    node = value.producer()
    if node is None or node.op_type != "Softmax" or not is_standard(node):
        return False
    shape = value.shape
    last = -1 if shape is None else len(shape) - 1
    return int_attribute(node, "axis", -1) in (-1, last)


def _mixed(averages: bool) -> Transfer:
    """An average of a constant is the constant; any weighted sum of zeros is 0."""

    def transfer(known: Sequence[Known | None]) -> Known | None:
        given = known[1]
        if given is None or averages:
            return given
        return Known(given.mask & ~given.nonzero, given.values)

    return transfer
