"""QuantizeLinear and DequantizeLinear with one scale for all channels.

Between DequantizeLinear and QuantizeLinear the runtime may compute an operator on the integers, and
round a half the other way than it does in numbers: 0.5 times an odd level is such a half. So the
constants of what is quantized are computed from those of the integers, by the three operators
together, as the runtime runs them by default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.analysis.values import constant_array, has_one_use
from onnxopt.channels.evaluation import QuantizedEvaluation
from onnxopt.channels.known import Known, Mask, Transfer
from onnxopt.channels.operators.elementwise import elementwise
from onnxopt.channels.parameters import dequantizer
from onnxopt.channels.tracer import Handler, Tracer
from onnxopt.op_traits import Trait, has_trait, is_standard
from onnxopt.rewriting import Refuse

__all__ = ["HANDLERS"]

_INTEGERS = frozenset({"uint8", "int8", "uint16", "int16"})


def _quantization(node: ir.Node, tracer: Tracer) -> None:
    if tracer.of(node.inputs[0]) is None:
        return
    for value in node.inputs[1:]:
        array = constant_array(value)
        if value is not None and (array is None or array.size != 1):
            raise Refuse("quantized with several scales")
    elementwise(node, tracer)
    integers = _integers(node) if node.op_type == "QuantizeLinear" else None
    if integers is not None:
        step = tracer.steps[-1]
        evaluation = QuantizedEvaluation(node, tracer.opset, tracer.ir_version)
        count = len(step.inputs)
        tracer.steps[-1] = dataclasses.replace(
            step,
            inputs=(*step.inputs, *integers),
            transfer=_refined(step.transfer, count, integers, evaluation),
        )


def _integers(node: ir.Node) -> list[ir.Value] | None:
    """What is dequantized for the elementwise operator whose output a node quantizes.

    Returns:
        None where there is no such operator, or it reads anything else.
    """
    value = node.inputs[0]
    operator = None if value is None else value.producer()
    if value is None or operator is None or not is_standard(operator):
        return None
    if not (has_trait(operator, Trait.UNARY) or has_trait(operator, Trait.BROADCAST)):
        return None
    if not has_one_use(value) or len(operator.outputs) != 1 or not _on_a_grid(node):
        return None
    found: list[ir.Value] = []
    for each in operator.inputs:
        source = dequantizer(each)
        integers = None if source is None else source.inputs[0]
        if source is None or integers is None or not _on_a_grid(source):
            return None
        found.append(integers)
    return found


def _on_a_grid(node: ir.Node) -> bool:
    """Whether all is quantized by one scale in float32 and one zero point, both given."""
    if len(node.inputs) < 3 or {"block_size", "output_dtype", "precision"} & set(node.attributes):
        return False
    scale, zero_point = (constant_array(value) for value in node.inputs[1:])
    if scale is None or zero_point is None or zero_point.dtype.name not in _INTEGERS:
        return False
    return scale.size == zero_point.size == 1 and scale.dtype == np.float32


def _refined(
    transfer: Transfer, count: int, integers: Sequence[ir.Value], evaluation: QuantizedEvaluation
) -> Transfer:
    """A transfer with the runtime's own integers where all that they are made of is known.

    Args:
        transfer: From the numbers.
        count: How many inputs it takes.
        integers: Values that the other inputs are.
        evaluation: Of what is made of them.
    """

    def refined(known: Sequence[Known | None]) -> Known | None:
        plain = transfer(known[:count])
        if plain is None:
            return None
        mask, operands = plain.mask, []
        for value, given in zip(integers, known[count:], strict=True):
            part = _part(given, constant_array(value), plain.mask.shape)
            if part is None:
                return plain
            mask = mask & part[0]
            operands.append(part[1])
        exact = evaluation.at(mask, operands)
        if exact is None:
            return plain
        return Known(plain.mask, np.where(mask, exact.values, plain.values))

    return refined


def _part(
    given: Known | None, array: NDArray[Any] | None, shape: tuple[int, ...]
) -> tuple[Mask, NDArray[Any]] | None:
    """Where integers are known, and which they are, in the shape of the channels or one for all."""
    if array is not None:
        if array.size == 1:
            return np.ones(shape, np.bool_), array
        if array.ndim > len(shape):
            return None
        full = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
        if any(one not in (1, size) for one, size in zip(full.shape, shape, strict=True)):
            return None
        return np.ones(shape, np.bool_), np.broadcast_to(full, shape)
    if given is None:
        return None
    full_shape = (1,) * (len(shape) - given.mask.ndim) + given.mask.shape
    return given.mask.reshape(full_shape), given.values.reshape(full_shape)


HANDLERS: dict[str, Handler] = {
    "QuantizeLinear": _quantization,
    "DequantizeLinear": _quantization,
}
