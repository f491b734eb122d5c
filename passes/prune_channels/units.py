"""What can be pruned: units of channels that only go together, in groups that have to share."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onnxopt.channels import Atoms, AxisRef, Layer, Trace

__all__ = ["Group", "Kept", "find_groups"]

Ids = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Units among which to choose: channels of the same layers, or heads of one attention.

    Attributes:
        name: The layer that makes the channels, for reports.
        kind: What a unit is: ``channel`` or ``head``.
        units: Atoms of each unit.
        writers: Layers that make the channels.
        readers: Layers that sum over them.
        blocked: Whether convolutions are among these, whose kernels work on blocks of channels.
    """

    name: str
    kind: str
    units: tuple[Ids, ...]
    writers: tuple[Layer, ...]
    readers: tuple[Layer, ...]
    blocked: bool


@dataclasses.dataclass(frozen=True)
class Kept:
    """Channels that cannot be pruned, once for each reason.

    Attributes:
        reason: Why.
        node: A node that holds them.
        count: How many sets of channels.
    """

    reason: str
    node: str
    count: int


def find_groups(trace: Trace) -> tuple[list[Group], list[Kept]]:
    """The groups of a graph, in the order in which their layers run, and what cannot be pruned."""
    numbers = _units(trace)
    pinned: Counter[tuple[str, str]] = Counter()
    stay = np.zeros(int(numbers.max(initial=-1)) + 1, np.bool_)
    for atom, pin in enumerate(trace.pins):
        if pin is not None:
            stay[numbers[atom]] = True
            pinned[pin.reason, pin.node] += 1
    for cell in trace.cells:
        if cell.inputs is not None:
            stay[numbers[cell.inputs]] = True
            name = cell.node.name or cell.node.op_type
            pinned["read by a recurrent layer", name] += len(cell.inputs)
    groups = []
    for members in _connected(trace, numbers, len(stay)):
        found = _group(trace, numbers, members, stay)
        if found is not None:
            groups.append(found)
    order = {layer.node: place for place, layer in enumerate(trace.layers)}
    groups.sort(key=lambda group: min(order[layer.node] for layer in group.readers))
    return groups, [Kept(reason, node, count) for (reason, node), count in pinned.items()]


def _units(trace: Trace) -> Ids:
    """By atom, the number of its unit.

    Where channels lie along two axes, whole slices go: along an axis that is tied (heads), else
    along the one that gives the smaller slices. Groups of a convolution lose channels at the same
    places.
    """
    atoms = Atoms()
    atoms.make(trace.count)
    for ties in trace.ties:
        for each in ties:
            if each.value in trace.atoms:
                _join(atoms, _slices(trace, each))
    for value, ids in trace.atoms.items():
        axes = [axis for axis, size in enumerate(ids.shape) if size > 1]
        if len(axes) < 2:
            continue
        numbers = atoms.united()[0]
        sliced = [_slices(trace, AxisRef(value, axis)) for axis in axes]
        whole = [(numbers[rows] == numbers[rows[:, :1]]).all() for rows in sliced]
        if not any(whole):
            _join(atoms, max(sliced, key=len))
    for ties in trace.ties:
        followed = [each for each in ties if each.value in trace.atoms]
        parts = [_slices(trace, each) for each in followed]
        for one, other in itertools.pairwise(parts):
            _join(atoms, np.stack([one[:, 0], other[:, 0]], axis=1))
    for layer in trace.layers:
        for channels in (layer.inputs, layer.outputs):
            if layer.groups > 1 and channels is not None:
                _join(atoms, channels.reshape(layer.groups, -1).T)
    return atoms.united()[0]


def _slices(trace: Trace, channels: AxisRef) -> Ids:
    ids = trace.atoms[channels.value]
    return np.moveaxis(ids, channels.axis, 0).reshape(ids.shape[channels.axis], -1)


def _join(atoms: Atoms, rows: Ids) -> None:
    """Let each row be one unit."""
    for column in range(1, rows.shape[1]):
        atoms.unite(rows[:, 0], rows[:, column])


def _connected(trace: Trace, numbers: Ids, count: int) -> Iterator[Ids]:
    """Units of each group: those that lie in one tensor."""
    joined = Atoms()
    joined.make(count)
    for ids in trace.atoms.values():
        units = np.unique(numbers[ids])
        joined.unite(np.full(len(units) - 1, units[0]), units[1:])
    members = joined.united()[0]
    for group in range(int(members.max(initial=-1)) + 1):
        yield np.flatnonzero(members == group)


def _group(trace: Trace, numbers: Ids, members: Ids, stay: NDArray[np.bool_]) -> Group | None:
    """The group of some units; None when there is nothing to choose from."""
    inside = np.zeros(len(stay), np.bool_)
    inside[members] = True
    writers = [
        layer
        for layer in trace.layers
        if layer.outputs is not None and inside[numbers[layer.outputs]].any()
    ]
    readers = [
        layer
        for layer in trace.layers
        if layer.inputs is not None and inside[numbers[layer.inputs]].any()
    ]
    made = {atom for layer in writers if layer.outputs is not None for atom in layer.outputs}
    read = {atom for layer in readers if layer.inputs is not None for atom in layer.inputs}
    free = [np.flatnonzero(numbers == unit) for unit in members.tolist() if not stay[unit]]
    units = tuple(unit for unit in free if made.intersection(unit) and read.intersection(unit))
    if len(units) < 2 or not writers or not readers:
        return None
    tied = {each.value for ties in trace.ties for each in ties}
    heads = any(inside[numbers[trace.atoms[value]]].any() for value in tied & trace.atoms.keys())
    name = writers[0].node.name or writers[0].node.outputs[0].name or writers[0].node.op_type
    blocked = any(layer.node.op_type in ("Conv", "ConvTranspose") for layer in (*writers, *readers))
    return Group(
        name, "head" if heads else "channel", units, tuple(writers), tuple(readers), blocked
    )
