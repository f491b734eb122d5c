"""Find decoders in a model by what they look like.

Names and metadata may have gone when a model passed through other tools, so decoders are known by
their operators. All decoders that the codes can make are built once of a few numbers, and each
value in them gets a number that stands for how it is computed. A model's values are looked up in
that table: a value is decoded if it is computed in one of these ways, from constants.

``Reshape``, ``Slice`` and ``Split`` are looked through, since they are there only where shapes ask
for them, or where several tensors are stored as one.
A single ``Cast`` or ``ConstantOfShape``, and a ``Mul`` in the end, may be anybody's; they are
decoders only if what they read has a name that we gave.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import constant
from onnxopt.op_traits import is_standard

from .bitmask import bitmask
from .builder import Decoder, DecoderBuilder, part_number
from .choice import combine
from .elias_fano import MOST_LOW_BITS, elias_fano
from .gaps import gaps, listed_gaps
from .narrow import narrow
from .numbers import as_they_are
from .palette import palette, palettes
from .positions import Sparse
from .scaled import Scaled

__all__ = ["META_DECODED", "FoundDecoder", "find_decoders"]

#: Key of `onnx_ir.Model.meta`: whether the model had decoders that were taken out.
META_DECODED = "onnxopt.decoded"

_LOOKED_THROUGH = frozenset(("Reshape", "Slice", "Split"))
_CONSTANT = 0
#: What decoders begin with.
_FIRST = frozenset(("BitShift", "Cast", "ConstantOfShape"))
#: Casts of fewer numbers than this are an exporter's, unless the name is ours.
_LEAST_PART = 16


@dataclasses.dataclass(frozen=True)
class FoundDecoder:
    """A decoder in a model.

    Attributes:
        output: What it makes.
        nodes: Its nodes, in topological order; some may serve other decoders, too.
        parts: The constants that it reads.
    """

    output: ir.Value
    nodes: tuple[ir.Node, ...]
    parts: dict[ir.Value, ir.TensorProtocol]


def find_decoders(graph: ir.Graph) -> list[FoundDecoder]:
    """The decoders in a graph, without those in the bodies of its nodes, in topological order."""
    if not any(map(_may_begin_decoder, graph)):
        return []
    table = _table()
    ways: dict[ir.Value, int] = {}
    for node in graph:
        way = table.way(node, ways)
        if way is not None:
            ways.update(dict.fromkeys(node.outputs, way))
    found: list[FoundDecoder] = []
    taken: set[ir.Value | None] = set()
    for value in reversed(ways):
        if ways[value] not in table.whole or value in taken:
            continue
        decoder = _cone(value, ways)
        if _is_ours(decoder, ways, table):
            found.append(decoder)
            taken.update(read for node in decoder.nodes for read in node.inputs)
    return found[::-1]


def _may_begin_decoder(node: ir.Node) -> bool:
    """Whether a node may be the first of a decoder; a quick look, since most models have none."""
    if node.op_type not in _FIRST or not is_standard(node) or node.inputs[0] is None:
        return False
    tensor = constant(node.inputs[0])
    if tensor is None:
        return False
    ours = part_number(node.inputs[0].name) >= 0
    return ours or node.op_type == "BitShift" or tensor.size >= _LEAST_PART


def _is_ours(decoder: FoundDecoder, ways: dict[ir.Value, int], table: _Table) -> bool:
    if part_number(decoder.output.name) >= 0:
        return False  # a piece of a decoder whose rest is not as it was
    last = decoder.nodes[-1]
    before = last.inputs[0]
    if last.op_type in _LOOKED_THROUGH and before in ways and part_number(before.name) < 0:
        return False  # somebody's own node behind a decoded tensor
    if last.op_type == "Mul" and part_number(None if before is None else before.name) < 0:
        return False  # somebody's own product with a decoded tensor
    if ways[decoder.output] in table.single:
        return any(part_number(part.name) >= 0 for part in decoder.parts)
    return True


def _cone(value: ir.Value, ways: dict[ir.Value, int]) -> FoundDecoder:
    """All nodes behind a value, and the constants they read."""
    nodes: dict[ir.Node, None] = {}
    parts: dict[ir.Value, ir.TensorProtocol] = {}
    behind: set[ir.Value] = {value}
    for each in reversed(ways):  # their order is that of the graph
        if each not in behind:
            continue
        node = each.producer()
        assert node is not None
        nodes[node] = None
        for read in node.inputs:
            tensor = constant(read)
            if read is not None and tensor is not None:
                parts[read] = tensor
            elif read is not None:
                behind.add(read)
    return FoundDecoder(value, tuple(reversed(nodes)), parts)


class _Table:
    """The ways in which decoders compute values, by number.

    Attributes:
        whole: Ways of whole decoders.
        single: Those that are a single node.
    """

    def __init__(self) -> None:
        self._ways: dict[tuple[str, tuple[int, ...]], int] = {}
        self.whole: set[int] = set()
        self.single: set[int] = set()

    def add(self, decoder: Decoder) -> None:
        """Learn what a decoder looks like."""
        ways: dict[ir.Value, int] = {}
        for node in decoder.nodes:
            known = [
                _CONSTANT if each is None else ways.get(each, _CONSTANT) for each in node.inputs
            ]
            way = self._look_up(node, known)
            if way is None:
                way = self._ways[node.op_type, tuple(known)] = len(self._ways) + 1
            ways[node.outputs[0]] = way
        self.whole.update(ways[output] for output in decoder.outputs)
        if len(decoder.nodes) == 1:
            self.single.update(ways[output] for output in decoder.outputs)

    def way(self, node: ir.Node, ways: dict[ir.Value, int]) -> int | None:
        """How a node's output is computed, if that is a way of decoders."""
        if not is_standard(node) or (len(node.outputs) != 1 and node.op_type != "Split"):
            return None
        known = [ways.get(each, _way_of_constant(each)) for each in node.inputs if each is not None]
        if len(known) != len(node.inputs) or None in known:
            return None
        return self._look_up(node, [each for each in known if each is not None])

    def _look_up(self, node: ir.Node, known: list[int]) -> int | None:
        if node.op_type in _LOOKED_THROUGH and known:
            return known[0] if not any(known[1:]) else None
        return self._ways.get((node.op_type, tuple(known)))


def _way_of_constant(value: ir.Value) -> int | None:
    return None if constant(value) is None else _CONSTANT


@functools.cache
def _table() -> _Table:
    table = _Table()
    for decoder in _examples():
        table.add(decoder)
    return table


def _examples() -> Iterator[Decoder]:
    """Decoders of a few numbers, one of each structure."""
    flat = np.array([0, 0, 1, 0, 2], np.float32)
    sparse = Sparse(flat, flat[:1], np.flatnonzero(flat))
    positions = [
        bitmask(sparse),
        *(gaps(sparse, width) for width in range(1, 9)),
        *(listed_gaps(sparse, width) for width in range(1, 8)),
        *(elias_fano(sparse, low_bits) for low_bits in range(MOST_LOW_BITS + 1)),
    ]
    builder = DecoderBuilder(0)
    yield builder.finish("constant", builder.filled(flat.shape, flat[:1]))
    factors = Scaled(flat.astype(np.int8), np.ones(1, np.float32))
    for place in (None, *positions):
        stored = flat if place is None else place.stored
        ways = [narrow(stored), *(palette(stored, width) for width in range(1, 9))]
        written = [way for way in ways if way is not None]
        as_is = as_they_are(stored)
        for numbers in written if place is None else [as_is, *written]:
            yield combine(DecoderBuilder(0), place, numbers, flat.shape)
        for numbers in [as_is, *written]:
            yield combine(DecoderBuilder(0), place, numbers, flat.shape, factors)
    for width in range(1, 9):
        shape = (2, 64 << width)
        grouped = palettes(np.arange(2 << width, dtype=np.float32).repeat(64), shape)
        assert grouped is not None
        for each in (None, factors):
            yield combine(DecoderBuilder(0), None, grouped, shape, each)
