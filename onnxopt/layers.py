"""The layers of a model as it runs: time, weights and precision, node by node.

ONNX Runtime runs kernels, not the model's nodes: it fuses some, splits none, and adds conversions
between memory layouts. A kernel is laid to a node of the model through the names of the values it
gives; of the nodes that it fuses, the one with the most weights gives the layer its name.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import constant
from onnxopt.findings import Layer
from onnxopt.op_traits import is_standard
from onnxopt.runtime.messages import KernelTime
from onnxopt.traversal import all_nodes, bodies, root_graphs

__all__ = ["beside", "kernel_seconds", "layer_name", "layers"]

#: How the runtime ends the name of a kernel of its blocked layout, which begins with a value's.
_BLOCKED = ("_bn_nchwc", "_nchwc")
#: What it adds to a name that is taken already.
_TOKEN = re.compile(r"_token_\d+$")
#: Element types of indices, shapes and texts; numbers of other types are weights.
_NO_WEIGHTS = frozenset([ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING])
#: What the runtime's profile calls a type, where that is not its name in the file.
_TYPES = {"float": "float32", "double": "float64"}


def layer_name(node: ir.Node) -> str:
    """What a layer is called: its node's name, or else the name of the first value it gives."""
    return node.name or node.outputs[0].name or node.op_type


def layers(model: ir.Model, kernels: Sequence[KernelTime] = ()) -> list[Layer]:
    """The nodes that take time or have weights, in the order in which they run.

    Args:
        model: The model that ran; not changed.
        kernels: What ran, with the time for one run; without it, times are not known.

    Returns:
        A layer for each node that a kernel stands for, for each kernel that stands for no node, and
        for each node with weights that no kernel was found for.
    """
    nodes = [node for graph in root_graphs(model) for node in all_nodes(graph)]
    producers = {value.name: node for node in nodes for value in node.outputs if value.name}
    by_name = {node.name: node for node in nodes if node.name}
    ends = [_ends(kernel, producers, by_name) for kernel in kernels]
    given = {value.name or "" for node in itertools.chain(*ends) for value in node.outputs}
    weights = _Weights(nodes)
    found: dict[str, Layer] = {}
    seen: set[int] = set()
    for kernel, last in zip(kernels, ends, strict=True):
        fused = _stands_for(kernel, last, given)
        seen.update(map(id, fused))
        if fused:
            node = max(fused, key=lambda each: _weight(each, weights, kernel))
            layer = _layer(node, weights, kernel)
        else:
            layer = Layer(
                kernel.node, kernel.op_type, seconds=kernel.seconds, kernel=kernel.op_type
            )
        known = found.get(layer.name)
        if known is not None:
            longer = layer if kernel.seconds > (known.seconds or 0.0) else known
            layer = dataclasses.replace(longer, seconds=(known.seconds or 0.0) + kernel.seconds)
        found[layer.name] = layer
    for node in nodes:
        if id(node) not in seen and weights.are_a_layers(node):
            found.setdefault(layer_name(node), _layer(node, weights, None))
    return list(found.values())


def beside(after: Sequence[Layer], before: Sequence[Layer]) -> list[Layer]:
    """The layers of a result with what layers of the same name took in the original."""
    originals = {layer.name: layer for layer in before}
    return [
        dataclasses.replace(
            layer, seconds_before=original.seconds, weight_bytes_before=original.weight_bytes
        )
        if (original := originals.get(layer.name)) is not None
        else layer
        for layer in after
    ]


def kernel_seconds(kernels: Iterable[KernelTime]) -> dict[str, float]:
    """Time for one run by the operator that the runtime chose, the longest first."""
    total: Counter[str] = Counter()
    for kernel in kernels:
        total[kernel.op_type] += kernel.seconds  # type: ignore[assignment]
    return dict(total.most_common())


def _ends(
    kernel: KernelTime, producers: Mapping[str, ir.Node], by_name: Mapping[str, ir.Node]
) -> list[ir.Node]:
    """The nodes that give what a kernel gives; none where names do not tell."""
    if _is_reorder(kernel):
        return []  # gives a value under its own name, which another kernel computed
    known = {id(producers[name]): producers[name] for name in kernel.outputs if name in producers}
    if known:
        return list(known.values())
    plain = _TOKEN.sub("", kernel.node)
    for suffix in _BLOCKED:
        name, found, _ = plain.rpartition(suffix)
        if found and name in producers:
            return [producers[name]]
    for name in (kernel.node, plain):
        if name in by_name:
            return [by_name[name]]
    return []


def _is_reorder(kernel: KernelTime) -> bool:
    """Whether it only brings values into another layout of memory."""
    return kernel.op_type.startswith("Reorder")


def _stands_for(kernel: KernelTime, ends: Sequence[ir.Node], given: set[str]) -> list[ir.Node]:
    """The nodes that a kernel computes, back from those whose values it gives."""
    fused = {id(node): node for node in ends}
    waiting = [node for node in ends if node.op_type != kernel.op_type]
    while waiting:
        for read in waiting.pop().inputs:
            inner = None if read is None or read.name in given else read.producer()
            if inner is not None and id(inner) not in fused:
                fused[id(inner)] = inner
                waiting.append(inner)
    return list(fused.values())


def _weight(node: ir.Node, weights: _Weights, kernel: KernelTime) -> tuple[int, bool]:
    """How well a node stands for all that a kernel computes."""
    return sum(tensor.nbytes for tensor in weights.read_by(node)), node.op_type == kernel.op_type


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    """Whether it holds weights: more than one number, and no indices."""
    return tensor.size > 1 and tensor.dtype not in _NO_WEIGHTS


class _Weights:
    """The constants that nodes read, directly or through nodes that compute on constants only.

    Args:
        nodes: All nodes of the model, each after those whose values it reads.
    """

    def __init__(self, nodes: Sequence[ir.Node]) -> None:
        self._fixed: set[int] = set()  # nodes that compute on constants only
        for node in nodes:
            inputs = [value for value in node.inputs if value is not None]
            if inputs and all(map(self._is_fixed, inputs)) and not bodies(node):
                self._fixed.add(id(node))
        self._read: dict[int, list[ir.TensorProtocol]] = {}

    def read_by(self, node: ir.Node) -> list[ir.TensorProtocol]:
        """The weights that a node computes with."""
        known = self._read.get(id(node))
        if known is None:
            reached = {id(tensor): tensor for tensor in self._reach(node)}
            known = [each for each in reached.values() if _is_weight(each)]
            self._read[id(node)] = known
        return known

    def are_a_layers(self, node: ir.Node) -> bool:
        """Whether a node has weights, and computes with them on what is fed to the model."""
        return id(node) not in self._fixed and bool(self.read_by(node))

    def _is_fixed(self, value: ir.Value) -> bool:
        return constant(value) is not None or id(value.producer()) in self._fixed

    def _reach(self, node: ir.Node) -> Iterator[ir.TensorProtocol]:
        waiting, seen = [node], {id(node)}
        while waiting:
            for value in waiting.pop().inputs:
                tensor = constant(value)
                if tensor is not None:
                    yield tensor
                elif value is not None and self._is_fixed(value):
                    producer = value.producer()
                    assert producer is not None
                    if id(producer) not in seen:
                        seen.add(id(producer))
                        waiting.append(producer)


def _layer(node: ir.Node, weights: _Weights, kernel: KernelTime | None) -> Layer:
    tensors = weights.read_by(node)
    operator = node.op_type if is_standard(node) else f"{node.domain}.{node.op_type}"
    return Layer(
        layer_name(node),
        operator,
        seconds=None if kernel is None else kernel.seconds,
        precision=_precision(tensors, kernel),
        weight_bytes=sum(tensor.nbytes for tensor in tensors) or None,
        zeros=_zeros(node),
        kernel="" if kernel is None else kernel.op_type,
    )


def _precision(tensors: Sequence[ir.TensorProtocol], kernel: KernelTime | None) -> str | None:
    """The type that is computed in; that of the weights behind it where it is another one."""
    largest = max(tensors, key=lambda tensor: tensor.nbytes, default=None)
    stored = None if largest is None else _type_name(largest.dtype.name.lower())
    computed = None
    if kernel is not None and kernel.input_types:
        computed = _type_name(kernel.input_types[0])
    if computed is None or stored is None or computed == stored:
        return computed or stored
    return f"{computed} × {stored}"


def _type_name(name: str) -> str:
    return _TYPES.get(name, name)


def _zeros(node: ir.Node) -> float | None:
    """Share of the weights that are zero; None where they are codes of something else."""
    zeros = total = 0
    for value in node.inputs:
        tensor, producer = constant(value), None if value is None else value.producer()
        zero_point: np.ndarray | None = None
        if tensor is None and producer is not None and producer.op_type == "DequantizeLinear":
            tensor = constant(producer.inputs[0])
            zero_point = None if tensor is None else _zero_point(producer, tensor)
            if tensor is not None and zero_point is None:
                return None
        if tensor is None or not _is_weight(tensor):
            continue
        if zero_point is None and not tensor.dtype.is_floating_point():
            return None
        array = tensor.numpy()
        same = array == (0 if zero_point is None else zero_point)
        zeros, total = zeros + int(np.count_nonzero(same)), total + tensor.size
    return zeros / total if total else None


def _zero_point(node: ir.Node, tensor: ir.TensorProtocol) -> np.ndarray | None:
    """What stands for 0 in a quantized weight, in a shape that compares with it."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros((), np.int8)
    known = constant(node.inputs[2])
    if known is None:
        return None
    array = known.numpy()
    if array.size == 1:
        return array.reshape(())
    rank, axis = len(tensor.shape), node.attributes.get_int("axis", 1)
    if array.ndim != 1 or array.size != tensor.shape[axis]:
        return None  # in blocks
    return array.reshape([-1 if each == axis % rank else 1 for each in range(rank)])
