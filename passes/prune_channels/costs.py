"""What a graph costs once some of its channels are gone: multiply-accumulates, or weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxopt.analysis.values import static_shape
from onnxopt.channels import Contraction, GroupCount, Trace
from onnxopt.channels.atoms import Ids

from .evidence import Evidence

__all__ = ["Costs"]

Mask = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class _Term:
    """A part of the cost, in proportion to how many channels are left of two sets.

    Attributes:
        cost: With all channels.
        first: Atoms of the one set; None if it always stays.
        second: Atoms of the other.
    """

    cost: float
    first: Ids | None
    second: Ids | None

    def left(self, removed: Mask) -> float:
        return self.cost * _share(self.first, removed) * _share(self.second, removed)


def _share(atoms: Ids | None, removed: Mask) -> float:
    return 1.0 if atoms is None else 1.0 - float(removed[atoms].mean())


class Costs:
    """The cost of a graph, with any of its channels removed.

    Counted are convolutions and matrix products; what is elementwise is taken for free.

    Args:
        trace: The channels of the graph.
        evidence: How often each layer runs.
        kind: ``macs`` or ``parameters``.
        whole: What all of the model costs, where that is known: some of it may be in layers whose
            channels are not followed.
    """

    def __init__(
        self,
        trace: Trace,
        evidence: Evidence,
        kind: Literal["macs", "parameters"],
        whole: float | None = None,
    ) -> None:
        self._terms: list[_Term] = []
        for layer in trace.layers:
            size = float(layer.weights.stored.size)
            if kind == "macs":
                axis = 1 if layer.output is None else layer.output.axis
                size *= evidence.places(layer.node.outputs[0], axis) or 1.0
            self._terms.append(_Term(size, layer.inputs, layer.outputs))
        for follower in trace.followers:
            if isinstance(follower, GroupCount):
                value = follower.node.outputs[0]
                shape = static_shape(follower.node.inputs[1])
                taps = 1 if shape is None else math.prod(shape[1:])
                ids = trace.atoms.get(value)
                if ids is None:
                    continue
                size = float(taps * ids.size)
                if kind == "macs":
                    size *= evidence.places(value, 1) or 1.0
                self._terms.append(_Term(size, ids.reshape(-1), None))
        if kind == "macs":
            self._terms.extend(_attention(trace, evidence))
        covered = sum(term.cost for term in self._terms)
        if whole is not None and whole > covered:
            self._terms.append(_Term(whole - covered, None, None))

    def total(self, removed: Mask) -> float:
        """The cost that is left."""
        return sum(term.left(removed) for term in self._terms)


def _attention(trace: Trace, evidence: Evidence) -> list[_Term]:
    """Queries times keys, and weights times values: in proportion to the channels of one factor."""
    terms = []
    for pairing in trace.pairings:
        places = evidence.places(pairing.node.outputs[0], 1)
        if places is None:
            continue
        if isinstance(pairing, Contraction):
            # Each head's scores are sums over its depth.
            terms.append(_Term(places * pairing.summed.size, pairing.summed.reshape(-1), None))
        elif pairing.made is not None:
            # Of the scores of a head there are as many as its values' places, squared: only the
            # proportion counts, and that is the channels that are left.
            terms.append(_Term(places * pairing.made.size, pairing.made.reshape(-1), None))
    return terms
