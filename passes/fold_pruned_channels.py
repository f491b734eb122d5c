"""Remove channels that are pruned but still there, with the answers kept.

Pruning in a framework sets filters or BatchNorm scales to zero, and the exported model is not a
byte smaller for it. A channel that is zero where it is made is seldom zero where it is read: it has
a bias, which activations make something else of. Such a channel is constant, everywhere and in
every run. This pass follows constants through the graph (`onnxopt.channels`) and removes channels

- that are constant wherever a layer sums over them: what they add goes into the layer's bias,
  ``b + sum_j c_j * sum(W_j)``;
- that no layer has a weight for, or only in rows that go themselves.

Under padding the border of a convolution sees less of a constant than the inside, so that no bias
is right. There one of the constant channels stays as a carrier k and takes over what the others
add, ``W_k + sum_j (c_j / c_k) * W_j``, which is exact at any size and any border.

Exact up to rounding, for inputs that are finite (0 times infinity, or NaN, is what is not kept).
A padded depthwise convolution makes of a constant one number inside and others along the border, by
the taps that see no padding. However many such channels there are, they are combinations of at most
as many as there are kinds of places, whatever the size, through activations too; those few stay and
take over the others (`shared.channel_removal.border_carriers`), where the layer that sums over them
has weights that are numbers.

The constants are those that the runtime itself computes. Weights count as zero if each is exactly
0; a sum that is 0 proves nothing.

In quantized models (QDQ, QLinearConv, QLinearMatMul) a constant is an integer, and so is what it
adds: the sum over ``(q_j - zero point)`` times weights goes into the int32 bias without any
rounding, if it stays within 32 bits and the bias counts in steps of the product of the scales.
Under padding several carriers share what the others add, in whole numbers
(`shared.channel_removal.integer_carriers`); where theirs cannot make it up, more of them stay.

Channels that meet in an elementwise operator (residual additions, the gates of squeeze-and-excite
blocks) go together or not at all. So do heads of attention in queries, keys and values: a head goes
when nothing reads it, a channel of queries and keys when it is 0 in one of them, a channel of
values when it is constant, since the average of a constant is the constant. Units of LSTM, GRU and
RNN go when nothing reads them, or when they stay at 0; constants that they read go into the biases
for the input, of both directions. No tensor loses its last channel, and groups
of a grouped convolution lose equal numbers. Left alone is all that the channels cannot be followed
through, with the reason: unknown operators, outputs of the graph, shared weights, sums and
normalization over channels. Bodies of control flow and functions are treated each by itself.

``round-to``: widths of convolutions stay multiples of this where they were at least as wide.
ONNX Runtime's CPU kernels work on blocks of channels and want multiples of 4. Measured on one
thread with AVX2, before and after a removal that leaves an odd width: a depthwise block with 90
channels took 188 us, with 96 or 92 it took 111; 3 x 3 convolutions at 28 x 28 took 130 us with 13
channels and 113 with 12 or 16, 1376 with 61 and 1222 with 64. With AVX-512 a width of 62 takes 2.0
times as long as one of 64 where it is depthwise, 1.36 times at 3 x 3, and 1.14 times at 1 x 1; one
of 60 takes 1.03 to 1.05 times as long, and one of 48 takes 0.64 to 0.83 times. A channel that is
kept for this is one that could have gone. Where a model turns out slower all the same, `optimize`
has the pass run again with multiples of 8, then of 16, before it leaves it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from onnxopt.channels import Known, Trace, known_channels, may_be_pruned, trace
from onnxopt.pass_contract import Outcome, Pass, Refusal
from onnxopt.rewriting import Context
from onnxopt.traversal import all_graphs

from .shared.channel_removal import Choice, choose, remove

__all__ = ["FoldPrunedChannels"]

_RULE = "remove-channel"
#: Channels that kernels take at a time: any with vectors at all, with AVX2, with AVX-512.
_BLOCKS = (4, 8, 16)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `fold-pruned-channels`.

    Attributes:
        round_to: Keep the widths of convolutions multiples of this, 1 for any width.
    """

    round_to: int = 4


class FoldPrunedChannels(Pass):
    """Remove channels that are constant or that nothing reads, and fold in what they add."""

    name = "fold-pruned-channels"
    Options = Options

    def careful(self) -> Pass | None:
        """The same with widths that are multiples of the next larger block of kernels."""
        larger = [block for block in _BLOCKS if block > self.options.round_to]
        return FoldPrunedChannels(Options(round_to=larger[0])) if larger else None

    def run(self, model: ir.Model) -> Outcome:
        """Remove channels from each graph until there are none to remove."""
        outcome = Outcome(model, False)
        context = Context(model)
        for graph, opset in _graphs(model):
            if not may_be_pruned(graph):
                continue
            before = None
            while True:
                traced = trace(graph, opset, model.ir_version)
                choice = self._choice(traced, known_channels(traced), outcome.rewritten.total())
                if not choice.removed.any() or traced.count == before:
                    break
                before = traced.count
                outcome.rewritten[_RULE] += int(choice.removed.sum())
                outcome.modified = True
                remove(choice, context)
            refusals = _refusals(choice)
            outcome.refusals.extend(refusals)
            outcome.matched[_RULE] += len(refusals)
        outcome.matched.update(outcome.rewritten)
        return outcome

    def _choice(self, traced: Trace, known: Mapping[ir.Value, Known], done: int) -> Choice:
        allowed = np.array([pin is None for pin in traced.pins], np.bool_)
        choice = choose(traced, known, self.options.round_to, allowed)
        if self.max_rewrites is not None:
            left = max(0, self.max_rewrites - done)
            first = np.flatnonzero(choice.removed)[:left]
            few = np.zeros(traced.count, np.bool_)
            few[first] = True
            choice = choose(traced, known, self.options.round_to, few)
        return choice


def _graphs(model: ir.Model) -> Iterator[tuple[ir.Graph, int]]:
    """All graphs, with the version of the standard operators there."""
    roots = [(model.graph, model.opset_imports)]
    roots.extend((each.graph, each.opset_imports) for each in model.functions.values())
    for root, imports in roots:
        for graph in all_graphs(root):
            yield graph, imports.get("", imports.get("ai.onnx", 0))


def _refusals(choice: Choice) -> list[Refusal]:
    """Why constant channels stay, once for each reason and place."""
    traced = choice.trace
    found: dict[tuple[str, str], None] = {}
    for value, known in choice.known.items():
        for atom in np.unique(traced.atoms[value][known.mask]).tolist():
            if (pin := traced.pins[atom]) is not None:
                found[pin.reason, pin.node] = None
    for reason, atoms in choice.kept.items():
        left = set(atoms)
        for value, ids in traced.atoms.items():
            node = value.producer()
            if node is not None and not left.isdisjoint(ids.reshape(-1).tolist()):
                found[reason, node.name or node.op_type] = None
                left.difference_update(ids.reshape(-1).tolist())
            if not left:
                break
    return [Refusal(_RULE, reason, node) for reason, node in found]
