"""The channels of a graph in groups, for people and for whoever chooses what to prune."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.channels.known import Known
from onnxopt.channels.reads import Reads, atoms_in
from onnxopt.channels.tracer import Trace

__all__ = ["ChannelGroup", "channel_groups"]


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Layers whose channels depend on one another.

    Attributes:
        writers: Layers that make the channels.
        readers: Layers that sum over them.
        width: How many sets of channels there are that can only be removed together.
        constant: How many of them hold the same number everywhere wherever a layer reads them.
        unread: How many no layer has a weight for, or only in rows that nothing needs.
        removable: How many can be removed with the answers kept.
        pinned: Reasons why channels must stay, and for how many.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    width: int
    constant: int
    unread: int
    removable: int
    pinned: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)


def channel_groups(trace: Trace, known: Mapping[ir.Value, Known]) -> list[ChannelGroup]:
    """The groups of a graph, in the order in which their layers run.

    Two values are of one group when they share channels.
    """
    count = trace.count
    reads = Reads(trace, known)
    pinned = np.array([pin is not None for pin in trace.pins], np.bool_)
    removable = reads.removable(pinned)
    needed, varying, summed = (np.zeros(count, np.bool_) for _ in range(3))
    for layer in trace.layers:
        if layer.inputs is not None:
            needed[layer.inputs[reads.read(layer, removable)]] = True
            varying[layer.inputs[~reads.constant(layer)]] = True
            summed[layer.inputs] = True
    constant, unread = summed & ~varying, summed & ~needed
    result: list[ChannelGroup] = []
    for mask in _connected(trace):
        writers = [
            _name(layer.node)
            for layer in trace.layers
            if layer.outputs is not None and mask[layer.outputs].any()
        ]
        readers = [
            _name(layer.node)
            for layer in trace.layers
            if layer.inputs is not None and mask[layer.inputs].any()
        ]
        reasons = Counter(
            pin.reason for atom in np.flatnonzero(mask) if (pin := trace.pins[atom]) is not None
        )
        result.append(
            ChannelGroup(
                writers=tuple(writers),
                readers=tuple(readers),
                width=int(mask.sum()),
                constant=int((mask & constant).sum()),
                unread=int((mask & unread).sum()),
                removable=int((mask & removable).sum()),
                pinned=dict(reasons),
            )
        )
    return result


def _connected(trace: Trace) -> Iterator[np.ndarray[Any, np.dtype[np.bool_]]]:
    """The atoms of each group."""
    masks: list[np.ndarray[Any, np.dtype[np.bool_]]] = []
    for ids in trace.atoms.values():
        mask = atoms_in(ids, trace.count)
        joined = [each for each in masks if (each & mask).any()]
        for each in joined:
            mask |= each
        where = next((i for i, each in enumerate(masks) if any(each is j for j in joined)), None)
        masks = [each for each in masks if not any(each is j for j in joined)]
        masks.insert(len(masks) if where is None else where, mask)
    yield from masks


def _name(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or node.op_type
