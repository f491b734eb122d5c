"""Which channels to remove: those that nothing needs, as far as shapes and speed allow.

`Reads.removable` says what could go. Some of that has to stay: a channel that carries what others
add to a padded convolution, equal numbers in the groups of a grouped convolution, at least one
channel of each tensor, and what fills a width up to a multiple that the runtime's kernels like.
Whatever is kept may need others, so all is worked out again with it, until nothing is added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.channels import AxisRef, Cell, Known, Layer, Reads, Trace

from .border_carriers import Takeover, lacking, take_over, takeovers
from .folding import Carriers, fold, folds_into_bias
from .integer_carriers import can_carry, carried

__all__ = ["Choice", "choose"]

Mask = NDArray[np.bool_]

#: A channel much smaller than the largest one is no good carrier: weights would become huge.
_LEAST_CARRIER = 1e-3
#: Operators whose kernels work on blocks of channels.
_BLOCKED = frozenset({"Conv", "ConvTranspose"})


class Choice:
    """What is removed from a graph.

    Attributes:
        trace: The channels of the graph.
        known: What is known of them.
        reads: What layers read of them.
        removed: By atom, whether it is removed.
        kept: Atoms that could be removed but for one of the reasons here, by reason.
    """

    def __init__(self, trace: Trace, known: Mapping[ir.Value, Known], round_to: int) -> None:
        self.trace = trace
        self.known = known
        self.reads = Reads(trace, known)
        self.removed: Mask = np.zeros(trace.count, np.bool_)
        self.kept: dict[str, set[int]] = {}
        self._round_to = round_to

    def settle(self, pinned: Mask) -> None:
        """Work out what is removed, given what must stay."""
        stay = pinned.copy()
        while True:
            self.removed = self.reads.removable(stay)
            if not self.removed.any():
                return
            found = next(((why, atoms) for why, atoms in self._to_keep() if atoms), None)
            if found is None:
                return
            reason, atoms = found
            self.kept.setdefault(reason, set()).update(atoms)
            stay[list(atoms)] = True

    def keeps(self, channels: AxisRef) -> Mask:
        """Which places along an axis are kept."""
        ids = self.trace.atoms[channels.value]
        others = tuple(axis for axis in range(ids.ndim) if axis != channels.axis)
        result: Mask = np.any(~self.removed[ids], axis=others)
        return result

    def gone(self, layer: Layer) -> Mask:
        """Which inputs of a layer are removed."""
        assert layer.inputs is not None
        return self.removed[layer.inputs]

    def folded(self, layer: Layer) -> NDArray[np.float64]:
        """The constants that a layer has to account for, by input; 0 where there is none."""
        if layer.inputs is None or layer.source is None:
            return np.zeros(0)
        known = layer.given(self.known.get(layer.source.value))
        numbers = np.zeros(len(layer.inputs))
        if known is not None:
            account = self.gone(layer) & self.reads.read(layer, self.removed)
            numbers = np.where(account, known.numbers.reshape(-1), 0.0)
        for each in self.takeovers(layer):
            numbers[each.gone] += each.everywhere
        return numbers

    def takeovers(self, layer: Layer) -> list[Takeover]:
        """How inputs that go and depend on the place alone are made of those that stay."""
        gone = self._gone_by_place(layer)
        if not gone.any():
            return []
        stays = ~self.gone(layer)
        return takeovers(layer, self.reads.profiles(layer), gone, stays, folds_into_bias(layer))

    def _gone_by_place(self, layer: Layer) -> Mask:
        if layer.inputs is None or not self.reads.profiles(layer):
            return np.zeros(0, np.bool_)
        account = self.gone(layer) & self.reads.read(layer, self.removed)
        return account & self.reads.by_place(layer)

    def carriers(self, layer: Layer) -> Carriers:
        """By group, the constant input that is largest among those that stay."""
        groups = layer.groups
        known = None if layer.source is None else self.known.get(layer.source.value)
        known = layer.given(known)
        if known is None:
            return Carriers(np.full(groups, -1), np.zeros(groups), np.zeros(self.gone(layer).shape))
        parted = np.where(self.gone(layer), 0.0, known.numbers.reshape(-1)).reshape(groups, -1)
        places = np.abs(parted).argmax(axis=1)
        numbers = parted[np.arange(groups), places]
        first = np.arange(groups) * parted.shape[1]
        return Carriers(np.where(numbers != 0, first + places, -1), numbers, parted.reshape(-1))

    def folded_into(self, cell: Cell) -> NDArray[np.float64] | None:
        """The biases of a recurrent layer with what constants add that go; None if there are none.

        Returns:
            Of each direction, for the input and for the state [D, 2 * gates * H].
        """
        known = self.known.get(cell.source)
        if cell.inputs is None or known is None:
            return None
        numbers = np.where(self.removed[cell.inputs], known.numbers.reshape(-1), 0.0)
        if not numbers.any():
            return None
        bias = cell.bias.astype(np.float64)
        added = cell.contribution(numbers)
        bias[:, : added.shape[1]] += added
        return bias

    # What has to stay

    def _to_keep(self) -> Iterator[tuple[str, set[int]]]:
        """Atoms to keep, and why: of each kind at most as many as are certainly needed."""
        for value, ids in self.trace.atoms.items():
            gone = self.removed[ids]
            if not gone.any():
                continue
            if gone.all():
                yield "the last channel of a tensor", {int(ids.reshape(-1)[0])}
            if sum(size > 1 for size in ids.shape) > 1:
                yield "channels that others stand beside", self._ragged(value)
        for tied in self.trace.ties:
            yield "heads that attention needs", self._torn(tied)
        for channels in self.trace.whole:
            yield "directions of a recurrent layer", self._lost(channels)
        for cell in self.trace.cells:
            yield "its constant is out of range", self._overflowing(cell)
        for layer in self.trace.layers:
            yield "groups of a convolution need equal numbers", self._uneven(layer)
            reason = "they carry what others add at the border of a depthwise convolution"
            yield reason, self._border_carriers(layer)
            yield from self._needs_carrier(layer)
        if self._round_to > 1:
            yield "the runtime is slower with an odd number of channels", self._rounded()

    def _ragged(self, value: ir.Value) -> set[int]:
        """Channels that are removed from the middle of a tensor with channels along two axes."""
        ids = self.trace.atoms[value]
        kept = np.ones(ids.shape, np.bool_)
        for axis in range(ids.ndim):
            shape = [1] * ids.ndim
            shape[axis] = -1
            kept &= self.keeps(AxisRef(value, axis)).reshape(shape)
        return set(ids[kept & self.removed[ids]].tolist())

    def _lost(self, channels: AxisRef) -> set[int]:
        """A channel for each place along an axis at which none is kept."""
        ids = self.trace.atoms.get(channels.value)
        if ids is None:
            return set()
        rows = np.moveaxis(ids, channels.axis, 0).reshape(ids.shape[channels.axis], -1)
        return set(rows[~self.keeps(channels), 0].tolist())

    def _torn(self, tied: Sequence[AxisRef]) -> set[int]:
        """A channel for each place along one of these axes that is kept along another only."""
        followed = [each for each in tied if each.value in self.trace.atoms]
        kept = [self.keeps(each) for each in followed]
        anywhere = np.any(kept, axis=0)
        keep: set[int] = set()
        for channels, here in zip(followed, kept, strict=True):
            ids = np.moveaxis(self.trace.atoms[channels.value], channels.axis, 0)
            keep.update(ids.reshape(len(here), -1)[anywhere & ~here, 0].tolist())
        return keep

    def _uneven(self, layer: Layer) -> set[int]:
        """Channels of the groups that lose more than others."""
        keep: set[int] = set()
        if layer.groups == 1:
            return keep
        for atoms in (layer.inputs, layer.outputs):
            if atoms is None:
                continue
            parted = atoms.reshape(layer.groups, -1)
            gone = self.removed[parted]
            counts = gone.sum(axis=1)
            for group in np.flatnonzero(counts > counts.min()):
                surplus = counts[group] - counts.min()
                keep.update(parted[group, gone[group]][:surplus].tolist())
        return keep

    def _overflowing(self, cell: Cell) -> set[int]:
        """All constants that go into the biases of a recurrent layer if those become too large."""
        bias = self.folded_into(cell)
        if bias is None:
            return set()
        with np.errstate(over="ignore"):
            fits = bool(np.isfinite(bias.astype(cell.bias.dtype)).all())
        assert cell.inputs is not None
        return set() if fits else set(cell.inputs[self.removed[cell.inputs]].tolist())

    def _border_carriers(self, layer: Layer) -> set[int]:
        """Channels behind a border that others which go cannot be made without."""
        gone = self._gone_by_place(layer)
        if not gone.any():
            return set()
        assert layer.inputs is not None
        profiles, stays = self.reads.profiles(layer), ~self.gone(layer)
        more = lacking(layer, profiles, gone, stays, folds_into_bias(layer))
        if not more.size:
            taken = take_over(layer, layer.blocks, self.takeovers(layer))
            more = more if np.isfinite(taken).all() else np.flatnonzero(gone)
        return set(layer.inputs[more].tolist())

    def _needs_carrier(self, layer: Layer) -> Iterator[tuple[str, set[int]]]:
        """The largest of the constants, where they cannot be folded into a bias."""
        numbers = self.folded(layer)
        if not numbers.any():
            return
        assert layer.inputs is not None
        carriers = self.carriers(layer)
        if not folds_into_bias(layer):
            if layer.weights.is_quantized:
                if can_carry(layer):
                    more = self._integer_carriers(layer, numbers, carriers)
                    yield "they carry what constant channels add where no bias can", more
                else:
                    reason = "quantized weights cannot carry what constant channels add"
                    yield reason, set(layer.inputs[numbers != 0].tolist())
                return
            parted = np.abs(numbers).reshape(layer.groups, -1)
            largest = parted.max(axis=1)
            lacking = np.flatnonzero(np.abs(carriers.numbers) < _LEAST_CARRIER * largest)
            if lacking.size:
                atoms = layer.inputs.reshape(parted.shape)
                reason = "it carries what constant channels add where no bias can"
                yield reason, {int(atoms[group, parted[group].argmax()]) for group in lacking}
                return
        if not fold(layer, numbers, carriers).fits(layer):
            yield "its constant is out of range", set(layer.inputs[numbers != 0].tolist())

    def _integer_carriers(
        self, layer: Layer, numbers: NDArray[np.float64], carriers: Carriers
    ) -> set[int]:
        """More carriers for the groups that need them: some large ones, and some small."""
        assert layer.inputs is not None
        _, lacking = carried(layer, numbers, carriers.constants)
        atoms = layer.inputs.reshape(layer.groups, -1)
        parted, kept = (
            np.abs(each).reshape(layer.groups, -1) for each in (numbers, carriers.constants)
        )
        keep: set[int] = set()
        for group in lacking:
            order = np.argsort(parted[group], kind="stable")
            order = order[parted[group, order] > 0]
            more = max(1, int(np.count_nonzero(kept[group])) // 8)
            chosen = np.concatenate([order[:more], order[-more:]])
            keep.update(atoms[group, chosen].tolist())
        return keep

    def _rounded(self) -> set[int]:
        """Channels that fill the output of a convolution up to a multiple of `round_to`."""
        for layer in self.trace.layers:
            if layer.outputs is None or layer.node.op_type not in _BLOCKED:
                continue
            gone = self.removed[layer.outputs]
            left, width = int((~gone).sum()), len(gone)
            rounded = -(-left // self._round_to) * self._round_to
            if not gone.any() or left == rounded or rounded > width:
                continue
            places = np.flatnonzero(gone)[: rounded - left]
            return set(layer.outputs[places].tolist())
        return set()


def choose(trace: Trace, known: Mapping[ir.Value, Known], round_to: int, allowed: Mask) -> Choice:
    """Choose what to remove from a graph.

    Args:
        trace: Its channels.
        known: What is known of them.
        round_to: Widths of convolutions stay multiples of this, where they can.
        allowed: By atom, whether it may be removed if nothing else speaks against it.
    """
    choice = Choice(trace, known, round_to)
    choice.settle(~allowed)
    return choice
