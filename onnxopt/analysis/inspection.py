"""What is in a model: operators and their cost, weights and where their bytes are, the interface.

Nothing is run and nothing is changed.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxopt.analysis.costs import costs_by_operator, formula_text, operator_name, total_of
from onnxopt.analysis.values import stated_dims
from onnxopt.op_traits import is_standard
from onnxopt.traversal import graphs_of

__all__ = ["Inspection", "OperatorFacts", "PortFacts", "TensorFacts", "Weight", "inspect_model"]

#: Element types of indices, shapes and texts; numbers of other types are parameters.
_NO_PARAMETERS = frozenset([ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING])


@dataclasses.dataclass(frozen=True)
class PortFacts:
    """An input or output.

    Attributes:
        name: Its name.
        type: Element type, or the kind of container, as ONNX writes it.
        shape: Sizes: numbers, symbols, None for unknown; None when not even the rank is known.
        has_default: Whether an initializer stands in when it is not fed.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None
    has_default: bool = False


@dataclasses.dataclass(frozen=True)
class TensorFacts:
    """A weight.

    Attributes:
        name: Its name.
        dtype: Element type.
        shape: Its shape.
        bytes: Its size.
        zeros: How many elements are 0; None for text.
        elements: How many elements there are.
        operator: The operator that reads it first, or empty.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    zeros: int | None
    elements: int
    operator: str


@dataclasses.dataclass(frozen=True)
class OperatorFacts:
    """All nodes of one operator.

    Attributes:
        name: The operator, with its domain unless that is the standard one.
        count: Number of nodes.
        macs: Multiply-accumulates of those whose shapes are known, a formula over symbolic sizes.
        unknown_macs: Nodes whose cost counts but whose shapes are not known.
        weight_bytes: Bytes of the weights that they are the first to read.
    """

    name: str
    count: int
    macs: str
    unknown_macs: int
    weight_bytes: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What is in a model.

    Attributes:
        producer: The program that wrote it, with its version.
        ir_version: Version of the file format.
        opsets: Opset version by domain.
        inputs: Graph inputs.
        outputs: Graph outputs.
        operators: Operators, the most frequent first; nodes of bodies and functions count too.
        nodes: Number of nodes.
        bodies: Number of graphs inside nodes (If, Loop, Scan).
        functions: Local functions, as ``domain.name``.
        parameters: Elements of all weights except int64, bool and text, which are indices and
            shapes.
        weight_bytes: Bytes of all weights.
        external_bytes: Bytes of the weights that are in another file.
        precision: Bytes by element type.
        zeros: Share of the parameters that are 0, from 0 to 1; None without parameters.
        tensors: All weights, the largest first.
        macs: Multiply-accumulates of one run, a formula over symbolic sizes.
        macs_number: The same as a number; None when it depends on a symbol.
        unknown_macs: Nodes whose cost is not in it.
        metadata: Metadata properties.
        notes: What to know about the numbers.
    """

    producer: str
    ir_version: int
    opsets: dict[str, int]
    inputs: tuple[PortFacts, ...]
    outputs: tuple[PortFacts, ...]
    operators: tuple[OperatorFacts, ...]
    nodes: int
    bodies: int
    functions: tuple[str, ...]
    parameters: int
    weight_bytes: int
    external_bytes: int
    precision: dict[str, int]
    zeros: float | None
    tensors: tuple[TensorFacts, ...]
    macs: str
    macs_number: int | None
    unknown_macs: int
    metadata: dict[str, str]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON-ready data."""
        return dataclasses.asdict(self)


def inspect_model(
    model: ir.Model, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Inspection:
    """Look at a model.

    Args:
        model: The model; not changed.
        shapes: Shapes of inputs by name (-1 leaves a size open), for the count of MACs.

    Raises:
        FeedError: When a shape does not fit the model.
    """
    notes: list[str] = []
    costs = costs_by_operator(model, shapes or {}, notes)
    weights = list(_weights(model))
    counts: Counter[str] = Counter()
    for node in (node for graph in graphs_of(model) for node in graph):
        counts[operator_name(node)] += 1
    bytes_by_operator: Counter[str] = Counter()
    precision: Counter[str] = Counter()
    facts: list[TensorFacts] = []
    for weight in weights:
        bytes_by_operator[weight.operator] += weight.tensor.nbytes
        precision[weight.tensor.dtype.name.lower()] += weight.tensor.nbytes
        facts.append(_tensor_facts(weight))
    parameters = [
        each
        for each, weight in zip(facts, weights, strict=True)
        if weight.tensor.dtype not in _NO_PARAMETERS
    ]
    elements = sum(each.elements for each in parameters)
    total = total_of(cost for known, _ in costs.values() for cost in known)
    return Inspection(
        producer=f"{model.producer_name or ''} {model.producer_version or ''}".strip(),
        ir_version=model.ir_version,
        opsets=dict(model.opset_imports),
        inputs=tuple(map(_port, model.graph.inputs)),
        outputs=tuple(map(_port, model.graph.outputs)),
        operators=tuple(
            OperatorFacts(
                name,
                count,
                formula_text(total_of(costs[name][0])) if name in costs else "0",
                costs[name][1] if name in costs else 0,
                bytes_by_operator[name],
            )
            for name, count in counts.most_common()
        ),
        nodes=counts.total(),
        bodies=len(graphs_of(model)) - 1 - len(model.functions),
        functions=tuple(f"{each[0]}.{each[1]}" for each in model.functions),
        parameters=elements,
        weight_bytes=sum(each.bytes for each in facts),
        external_bytes=sum(
            weight.tensor.nbytes
            for weight in weights
            if isinstance(weight.tensor, ir.ExternalTensor)
        ),
        precision=dict(precision.most_common()),
        zeros=sum(each.zeros or 0 for each in parameters) / elements if elements else None,
        tensors=tuple(sorted(facts, key=lambda each: -each.bytes)),
        macs=formula_text(total),
        macs_number=total.constant,
        unknown_macs=sum(unknown for _, unknown in costs.values()),
        metadata=dict(model.metadata_props),
        notes=tuple(notes),
    )


def _port(value: ir.Value) -> PortFacts:
    match value.type:
        case None:
            kind = "unknown"
        case ir.TensorType():
            kind = value.type.dtype.name.lower()
        case _:
            kind = str(value.type)
    return PortFacts(value.name or "", kind, stated_dims(value), value.is_initializer())


# Weights


@dataclasses.dataclass(frozen=True)
class Weight:
    """A constant of the model: its name, its tensor, and the operator that reads it first."""

    name: str
    tensor: ir.TensorProtocol
    operator: str


def _weights(model: ir.Model) -> Iterator[Weight]:
    """Initializers of all graphs and tensors of Constant nodes."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield Weight(value.name or "", value.const_value, _first_reader(value))
    for node in (node for graph in graphs_of(model) for node in graph):
        attribute = node.attributes.get("value")
        if node.op_type != "Constant" or not is_standard(node) or attribute is None:
            continue
        if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
            output = node.outputs[0]
            yield Weight(output.name or "", attribute.as_tensor(), _first_reader(output))


def _first_reader(value: ir.Value) -> str:
    readers = value.consumers()
    return operator_name(readers[0]) if readers else ""


def _tensor_facts(weight: Weight) -> TensorFacts:
    tensor = weight.tensor
    return TensorFacts(
        weight.name,
        tensor.dtype.name.lower(),
        tuple(tensor.shape.numpy()),
        tensor.nbytes,
        _zeros(tensor),
        tensor.size,
        weight.operator,
    )


def _zeros(tensor: ir.TensorProtocol) -> int | None:
    if tensor.dtype == ir.DataType.STRING:
        return None
    array = np.asarray(tensor.numpy())
    if array.dtype == ml_dtypes.float8_e8m0fnu:
        return 0  # powers of two; there is no zero
    return int(array.size - np.count_nonzero(array))
