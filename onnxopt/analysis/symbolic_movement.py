"""Rules for the shapes that operators give which move elements and compute nothing.

See `symbolic_shapes` for what a rule is.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute, ints_attribute
from onnxopt.analysis.expressions import ONE, ZERO, Expression, number, product
from onnxopt.analysis.symbolic_values import FAR, Dims, Questions, Shape, ShapeRule, broadcast
from onnxopt.analysis.values import constant_array
from onnxopt.rewriting import Refuse

__all__ = ["MOVEMENT_RULES", "axes_of", "axis_from_front", "reshaped"]


def axis_from_front(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    if not -rank <= axis < rank:
        raise Refuse("an axis is out of range")
    return axis % rank


def _transpose(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    [shape] = ask.shapes(node.inputs[0])
    if shape is None:
        return None
    order = ints_attribute(node, "perm")
    return shape[::-1] if order is None else [shape[axis] for axis in order]


def reshaped(source: Shape | None, target: Sequence[Expression], allowzero: bool) -> Dims:
    """The shape that Reshape gives.

    Without ``allowzero``, an element of the target that is 0 when the model runs stands for the
    size of the input there. Where the target has as many elements as the input whatever the sizes,
    and the others are not 0 then, that size is 0 too, so the result is what the element says. This
    is claimed unless another element depends on the same size; that two different sizes are 0 at
    once is left out of account.
    """
    dims: list[Expression | None] = []
    inferred = [axis for axis, element in enumerate(target) if element.constant == -1]
    count = product(target)
    keeps_count = source is not None and count == product(source) and count != ZERO
    for axis, element in enumerate(target):
        copied = source[axis] if source is not None and axis < len(source) else None
        others = (*target[:axis], *target[axis + 1 :])
        if element == ZERO and not allowzero:
            dims.append(copied)
        elif not element.at_least(ZERO):
            dims.append(None)
        elif allowzero or element == copied or element.is_nonzero():
            dims.append(element)
        else:
            alone = all(element.atoms.isdisjoint(other.atoms) for other in others)
            dims.append(element if alone and keeps_count else None)
    if len(inferred) == 1 and source is not None:
        known = [dim for axis, dim in enumerate(dims) if axis != inferred[0] and dim is not None]
        if len(known) == len(dims) - 1:
            dims[inferred[0]] = product(source).quotient(product(known))
    return dims


def _reshape(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    if len(node.inputs) < 2:
        return None
    [source] = ask.shapes(node.inputs[0])
    [target] = ask.integers(node.inputs[1])
    if target is None or target.is_scalar:
        return None
    return reshaped(source, target.elements, int_attribute(node, "allowzero", 0) == 1)


def _flatten(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    [shape] = ask.shapes(node.inputs[0])
    if shape is None:
        return None
    axis = int_attribute(node, "axis", 1)
    axis += len(shape) if axis < 0 else 0
    return [product(shape[:axis]), product(shape[axis:])]


def axes_of(node: ir.Node, ask: Questions) -> tuple[int, ...] | None:
    """Axes from the attribute, or from the second input where they are known."""
    axes = ints_attribute(node, "axes")
    if axes is None and len(node.inputs) > 1:
        [given] = ask.integers(node.inputs[1])
        axes = given.constants if given is not None else None
    return axes


def _unsqueeze(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    [shape] = ask.shapes(node.inputs[0])
    axes = axes_of(node, ask)
    if shape is None or axes is None:
        return None
    rank = len(shape) + len(axes)
    rest = iter(shape)
    new = {axis_from_front(axis, rank) for axis in axes}
    return [ONE if axis in new else next(rest) for axis in range(rank)]


def _squeeze(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    [shape] = ask.shapes(node.inputs[0])
    axes = axes_of(node, ask)
    if shape is None or not axes:  # without axes, the rank depends on which sizes are 1
        return None
    gone = {axis_from_front(axis, len(shape)) for axis in axes}
    return [dim for axis, dim in enumerate(shape) if axis not in gone]


def _expand(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    [shape] = ask.shapes(node.inputs[0])
    [target] = ask.integers(node.inputs[1])
    if shape is None or target is None:
        return None
    return broadcast(shape, [each if each.at_least(ZERO) else None for each in target.elements])


def _tile(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    [shape] = ask.shapes(node.inputs[0])
    [repeats] = ask.integers(*node.inputs[1:2])
    if shape is None or repeats is None or len(repeats.elements) != len(shape):
        return None
    return [dim * times for dim, times in zip(shape, repeats.elements, strict=True)]


def _pad(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    [shape] = ask.shapes(node.inputs[0])
    if shape is None:
        return None
    unknown: Dims = [None] * len(shape)
    pads, axes = ints_attribute(node, "pads"), tuple(range(len(shape)))  # opset 2 to 10
    if pads is None:
        amounts, _value, where = ask.integers(*[*node.inputs[1:], None, None][:3])
        pads = amounts.constants if amounts is not None else None
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            if where is None or where.constants is None:
                return unknown
            axes = tuple(axis_from_front(axis, len(shape)) for axis in where.constants)
    if pads is None or len(pads) != 2 * len(axes):
        return unknown
    dims: list[Expression | None] = list(shape)
    for order, axis in enumerate(axes):
        added = pads[order] + pads[order + len(axes)]
        padded = shape[axis] + number(added)
        dims[axis] = padded if padded.at_least(ZERO) else None
    return dims


def _resize(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    """An axis whose scale is exactly 1 keeps its size; the rest is for shape inference to say."""
    [shape] = ask.shapes(node.inputs[0])
    scales = node.inputs[-1 if len(node.inputs) < 4 else 2]
    array = constant_array(scales, limit=len(shape or ()))
    if shape is None or array is None or array.size != len(shape) or "axes" in node.attributes:
        return None if shape is None else [None] * len(shape)
    return [dim if scale == 1 else None for dim, scale in zip(shape, array, strict=True)]


def _concat(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    shapes = [shape for shape in ask.shapes(*node.inputs) if shape is not None]
    if len(shapes) != len(node.inputs) or len({len(shape) for shape in shapes}) != 1:
        return None
    axis = axis_from_front(int_attribute(node, "axis", 0), len(shapes[0]))
    columns = list(zip(*shapes, strict=True))
    dims: list[Expression | None] = [
        next((dim for dim in column if dim.constant is not None), column[0]) for column in columns
    ]
    dims[axis] = sum(columns[axis], ZERO)
    return dims


def _split(node: ir.Node, index: int, ask: Questions) -> Dims | None:
    [shape] = ask.shapes(node.inputs[0])
    if shape is None:
        return None
    axis = axis_from_front(int_attribute(node, "axis", 0), len(shape))
    dims: list[Expression | None] = list(shape)
    sizes = ints_attribute(node, "split")
    if sizes is not None:
        dims[axis] = number(sizes[index])
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        [given] = ask.integers(node.inputs[1])
        known = given is not None and index < len(given.elements)
        dims[axis] = given.elements[index] if given is not None and known else None
    else:
        dims[axis] = shape[axis].quotient(number(len(node.outputs)))
    return dims


def _gather(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    data, indices = ask.shapes(*node.inputs)
    if data is None or indices is None:
        return None
    axis = axis_from_front(int_attribute(node, "axis", 0), len(data))
    return (*data[:axis], *indices, *data[axis + 1 :])


def _indices(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    """Elements are picked one by one: the shape of the second input."""
    return ask.shapes(node.inputs[1])[0]


def _slice(node: ir.Node, _: int, ask: Questions) -> Dims | None:
    [shape] = ask.shapes(node.inputs[0])
    if shape is None:
        return None
    if len(node.inputs) == 1:  # opset 1 to 9
        given = [ints_attribute(node, name) for name in ("starts", "ends", "axes")]
        starts, ends, axes, steps = (
            None if each is None else [number(value) for value in each] for each in (*given, None)
        )
    else:
        inputs = [*node.inputs[1:], None, None][:4]
        contents = ask.integers(*inputs)
        if any(v is not None and c is None for v, c in zip(inputs, contents, strict=True)):
            return [None] * len(shape)
        starts, ends, axes, steps = (
            None if each is None else list(each.elements) for each in contents
        )
    if starts is None or ends is None:
        return None
    where = [number(axis) for axis in range(len(starts))] if axes is None else axes
    dims: list[Expression | None] = list(shape)
    for order, start in enumerate(starts):
        axis, step = where[order].constant, 1 if steps is None else steps[order].constant
        if axis is None:
            return [None] * len(shape)
        axis = axis_from_front(axis, len(shape))
        dims[axis] = None if step is None else _sliced(shape[axis], start, ends[order], step)
    return dims


def _sliced(dim: Expression, start: Expression, end: Expression, step: int) -> Expression | None:
    """The length of what a slice along one axis leaves."""
    size, first, last = dim.constant, start.constant, end.constant
    if step < 0 and (last is None or last >= FAR):  # runtimes do not agree on what that means
        return None
    if size is not None and first is not None and last is not None and step != 0:
        return number(len(range(*slice(first, last, step).indices(size))))
    if step != 1:
        return None
    begin, stop = _position(dim, start), _position(dim, end)
    if begin is None or stop is None or not stop.at_least(begin):
        return None
    return stop - begin


def _position(dim: Expression, bound: Expression) -> Expression | None:
    """A bound of a slice as a position in 0 to dim, where it certainly is one or is cut to one."""
    value = bound.constant
    if value is not None and value < 0:
        bound = dim + bound
        return bound if bound.at_least(ZERO) else None
    if (value is not None and value >= FAR) or bound.at_least(dim):
        return dim
    return bound if bound.at_least(ZERO) and dim.at_least(bound) else None


#: The rules by operator.
MOVEMENT_RULES: dict[str, ShapeRule] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
    "Split": _split,
    "Gather": _gather,
    "GatherElements": _indices,
    "Slice": _slice,
}
