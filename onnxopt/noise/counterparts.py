"""Which values of a quantized model stand for which of the float one.

Where a value is quantized, its whole numbers are what stands for it: to ask for those leaves the
runtime's fused kernels in place, while to ask for the float value before QuantizeLinear would undo
them. Names tell what stands for what: the name itself, or the name and what tools put behind it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import constant, constant_array, is_constant
from onnxopt.layers import layer_name
from onnxopt.regions import clamp_after
from onnxopt.short_names import short_name

__all__ = ["Codes", "Counterpart", "counterparts"]

Array = np.ndarray[Any, Any]

#: What tools put behind the name of a value to name its whole numbers: this one, and the runtime's;
#: a number behind that where the name was taken.
_SUFFIX = re.compile(r"(_quantized|_QuantizeLinear_Output|_QuantizeLinear)(_\d+)?$")
#: Where nodes that give whole numbers say with which scale and zero point.
_SCALE_INPUTS: Mapping[str, tuple[int, int]] = {
    "QuantizeLinear": (1, 2),
    "QLinearConv": (6, 7),
    "QLinearMatMul": (6, 7),
    "QLinearAdd": (6, 7),
    "QLinearMul": (6, 7),
    "QGemm": (7, 8),
    "QLinearSigmoid": (3, 4),
    "QLinearLeakyRelu": (3, 4),
    "QLinearSoftmax": (3, 4),
    "QLinearAveragePool": (3, 4),
    "QLinearGlobalAveragePool": (3, 4),
    "QLinearConcat": (0, 1),
}
#: Nodes that only move whole numbers: their scale is that of what they read.
_MOVES = frozenset(
    ["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "MaxPool"]
)
#: The range of whole numbers may be past the bound of a clamp by so much of itself.
_ROUNDING = 1e-4
_CONVERSIONS = frozenset(["QuantizeLinear", "DequantizeLinear", "Cast", "Identity"])
_WHOLE = {
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
}


@dataclasses.dataclass(frozen=True)
class Codes:
    """What whole numbers stand for: ``scale * (q - zero_point)``.

    Attributes:
        scale: float32, a number or one for each index of the axis.
        zero_point: Of the same shape.
        axis: The axis, where there is more than one scale.
        least: The least whole number of the type.
        greatest: The greatest.
    """

    scale: Array
    zero_point: Array
    axis: int
    least: int
    greatest: int

    def floats(self, numbers: Array) -> Array:
        """What the numbers stand for, float32."""
        scale, zero = self._beside(numbers.ndim)
        return (numbers.astype(np.float32) - zero) * scale

    def rounded(self, values: Array) -> Array:
        """Values as their nearest whole numbers give them back, those out of range cut off."""
        scale, zero = self._beside(values.ndim)
        numbers = np.clip(np.rint(values / scale) + zero, self.least, self.greatest)
        return np.asarray((numbers - zero) * scale)

    @property
    def low(self) -> float:
        """The least number that has a code of its own, in any channel."""
        return float(((self.least - self.zero_point) * self.scale).min())

    @property
    def high(self) -> float:
        """The greatest."""
        return float(((self.greatest - self.zero_point) * self.scale).max())

    @property
    def steps(self) -> int:
        """How many codes there are."""
        return self.greatest - self.least + 1

    def cut(self, values: Array) -> Array:
        """Values with what is out of range cut off."""
        scale, zero = self._beside(values.ndim)
        return np.clip(values, (self.least - zero) * scale, (self.greatest - zero) * scale)

    def _beside(self, rank: int) -> tuple[Array, Array]:
        shape = [1] * rank
        if self.scale.size > 1:
            shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Counterpart:
    """A value of the second model that stands for one of the first.

    Attributes:
        value: Name in the first model.
        fetched: Name in the second model of what has to be looked at.
        codes: What its whole numbers stand for; None where it is float.
        node: The node of the second model that computes it; None where it is converted only.
        sources: Values of the first model whose counterparts it is computed from.
        weights: Whole numbers that the node multiplies by, and their zero point, where there are.
    """

    value: str
    fetched: str
    codes: Codes | None
    node: ir.Node | None
    sources: tuple[str, ...] = ()
    weights: tuple[Array, Array] | None = None

    @property
    def layer(self) -> str:
        """What the layer is called."""
        return self.value if self.node is None else layer_name(self.node)


def counterparts(first: ir.Model, second: ir.Model) -> list[Counterpart]:
    """What stands for values of the first model in the second, in the order of the second.

    Values of the main graph: those that are quantized, those that are computed with weights, what
    such nodes read, and outputs.

    Args:
        first: The float model.
        second: The quantized one.
    """
    interesting = _interesting(first.graph)
    known = {value.name for value in first.graph.inputs}
    known |= {value.name for node in first.graph for value in node.outputs}
    known |= {value.name for value in first.graph.outputs}
    stems = {short_name(name): name for name in known if name} | {name: name for name in known}
    found: dict[str, tuple[ir.Value, Codes | None]] = {}
    for value in _values(second.graph):
        codes = _codes(value)
        name = _stands_for(value, stems) if codes is not None else value.name
        if name is None or name not in known or (codes is None and name not in interesting):
            continue
        if codes is None and (_is_only_quantized(value) or name in found):
            continue
        if codes is None and value.producer() is None:
            continue  # an input is what it is
        found[name] = (value, codes)
    _see_through_clamps(first.graph, second.graph, found)
    by_value = {value: name for name, (value, _) in found.items()}
    made = []
    for name, (value, codes) in found.items():
        nodes, sources = _behind(value, by_value)
        node = _computing(nodes)
        weights = None if node is None else _whole_weights(node)
        made.append(Counterpart(name, value.name or "", codes, node, tuple(sources), weights))
    return made


def _see_through_clamps(
    first: ir.Graph, second: ir.Graph, found: dict[str, tuple[ir.Value, Codes | None]]
) -> None:
    """Let whole numbers stand for what is behind Relu or Clip, where the second model has no such.

    Saturation does what they did then, and the range ends where they cut.
    """
    there = {value.name for value in _values(second)}
    for node in first:
        for value in node.outputs:
            clamp = clamp_after(value)
            if clamp is None or value.name not in found:
                continue
            codes, behind = found[value.name][1], clamp.node.outputs[0].name
            if codes is None or behind in there or behind in found or behind is None:
                continue
            slack = _ROUNDING * (codes.high - codes.low)
            if clamp.low - slack <= codes.low and codes.high <= clamp.high + slack:
                found[behind] = found.pop(value.name)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _interesting(graph: ir.Graph) -> set[str | None]:
    """Values that are computed with weights, or read together with them, and outputs; by name."""
    names = {value.name for value in graph.outputs}
    for node in graph:
        if any(_is_matrix(value) for value in node.inputs):
            names.update(value.name for value in node.outputs)
            names.update(value.name for value in node.inputs[:1] if value is not None)
            for value in node.outputs:
                for reader, _ in value.uses():  # its bias, and its activation
                    if reader.op_type in ("Add", "Relu", "Clip") and len(reader.outputs) == 1:
                        names.add(reader.outputs[0].name)
    return names


def _is_matrix(value: ir.Value | None) -> bool:
    """Whether it is a constant of two dimensions or more, as it is or moved about."""
    while value is not None:
        tensor = constant(value)
        if tensor is not None:
            return len(tensor.shape) >= 2 and tensor.dtype.is_floating_point()
        node = value.producer()
        if node is None or node.op_type not in ("Transpose", "Reshape", "Identity", "Cast"):
            return False
        value = node.inputs[0]
    return False


def _codes(value: ir.Value, depth: int = 0) -> Codes | None:
    """What a value's whole numbers stand for; None where it is no such value, or is not known."""
    node = value.producer()
    if node is None or is_constant(value) or depth > 16:
        return None
    if node.op_type in _SCALE_INPUTS:
        return _codes_of(node, *_SCALE_INPUTS[node.op_type])
    if node.op_type in _MOVES and node.inputs:
        source = node.inputs[0]
        found = None if source is None else _codes(source, depth + 1)
        return found if found is None or found.scale.size == 1 else None
    return None


def _codes_of(node: ir.Node, scale_at: int, zero_at: int) -> Codes | None:
    if len(node.inputs) <= scale_at:
        return None
    scale = constant_array(node.inputs[scale_at])
    given = node.inputs[zero_at] if len(node.inputs) > zero_at else None
    tensor = constant(given)
    zero = None if tensor is None else tensor.numpy()
    if scale is None or (zero is None and given is not None):
        return None
    dtype = ir.DataType.UINT8 if tensor is None else tensor.dtype
    if dtype not in _WHOLE or scale.ndim > 1:
        return None
    zero = np.zeros_like(scale, np.int32) if zero is None else zero
    axis = node.attributes.get_int("axis", 1)
    return Codes(scale.astype(np.float32), zero.astype(np.int32), axis, *_WHOLE[dtype])


def _stands_for(value: ir.Value, stems: Mapping[str | None, str | None]) -> str | None:
    """The value of the first model that whole numbers stand for, by name.

    Args:
        value: The whole numbers.
        stems: The values of the first model, by their names and by their short names.
    """
    name = value.name or ""
    stem = _SUFFIX.sub("", name)
    if stem != name and stem in stems:
        return stems[stem]
    node = value.producer()
    if node is not None and node.op_type == "QuantizeLinear" and node.inputs[0] is not None:
        return node.inputs[0].name
    for reader, _ in value.uses():
        if reader.op_type == "DequantizeLinear" and reader.outputs[0].name in stems:
            return stems[reader.outputs[0].name]
    return None


def _is_only_quantized(value: ir.Value) -> bool:
    """Whether nothing reads a value but nodes that quantize it: its numbers are looked at then."""
    readers = [node for node, _ in value.uses()]
    return (
        bool(readers)
        and not value.is_graph_output()
        and all(node.op_type == "QuantizeLinear" for node in readers)
    )


def _behind(
    value: ir.Value, by_value: Mapping[ir.Value, str]
) -> tuple[list[ir.Node], dict[str, None]]:
    """The nodes that compute a value from what stands for values of the first, and those values."""
    nodes: dict[ir.Node, None] = {}
    sources: dict[str, None] = {}
    waiting = [value]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in nodes:
            continue
        nodes[node] = None
        for read in node.inputs:
            if read is None or is_constant(read):
                continue
            if read in by_value:
                sources[by_value[read]] = None
            else:
                waiting.append(read)
    return list(nodes), sources


def _computing(nodes: Sequence[ir.Node]) -> ir.Node | None:
    """Of nodes from a value backwards, the one that the layer is called after."""
    weighted = [node for node in nodes if _whole_weights(node) is not None]
    if weighted:
        return weighted[0]
    plain = [node for node in nodes if node.op_type not in _CONVERSIONS]
    matrices = [node for node in plain if any(_is_matrix(value) for value in node.inputs)]
    return next(iter([*matrices, *plain]), None)


def _whole_weights(node: ir.Node) -> tuple[Array, Array] | None:
    """Quantized weights of a product: whole numbers, and the zero point, number or vector."""
    match node.op_type:
        case "Conv" | "MatMul" | "Gemm":
            source = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] else None
            if source is None or source.op_type != "DequantizeLinear":
                return None
            numbers = source.inputs[0]
            zero = source.inputs[2] if len(source.inputs) > 2 else None
        case "QLinearConv" | "QLinearMatMul" | "QGemm":
            numbers, zero = node.inputs[3], node.inputs[5]
        case "MatMulInteger" | "ConvInteger":
            numbers, zero = node.inputs[1], node.inputs[3] if len(node.inputs) > 3 else None
        case _:
            return None
    known = constant(numbers)
    if known is None or known.dtype not in _WHOLE:
        return None
    zeros = constant_array(zero)
    return known.numpy(), np.zeros((), np.int32) if zeros is None else zeros.astype(np.int32)
