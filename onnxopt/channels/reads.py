"""Which channels are read, given which others stay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxopt.channels.atoms import Ids
from onnxopt.channels.borders import Profiles, border_profiles
from onnxopt.channels.known import Known, Mask
from onnxopt.channels.layers import Layer
from onnxopt.channels.tracer import Trace

__all__ = ["Reads"]


class Reads:
    """Asks the layers of a graph what they read, and remembers the answers."""

    def __init__(self, trace: Trace, known: Mapping[ir.Value, Known]) -> None:
        self._trace = trace
        self._known = known
        self._behind = border_profiles(trace.borders, trace.steps, known)
        self._answers: dict[tuple[Layer, bytes], Mask] = {}

    def read(self, layer: Layer, removed: Mask) -> Mask:
        """Which input channels of a layer some output depends on that is not removed.

        Args:
            layer: A layer whose input channels are followed.
            removed: By atom, whether it is removed.
        """
        kept: Mask | None = None
        if layer.outputs is not None and (gone := removed[layer.outputs]).any():
            kept = ~gone
        key = (layer, b"" if kept is None else kept.tobytes())
        if key not in self._answers:
            self._answers[key] = layer.reads(kept)
        return self._answers[key]

    def constant(self, layer: Layer) -> Mask:
        """Which input channels of a layer are constant."""
        assert layer.source is not None
        assert layer.inputs is not None
        known = self._known.get(layer.source.value)
        return np.zeros(layer.inputs.shape, np.bool_) if known is None else known.mask.reshape(-1)

    def profiles(self, layer: Layer) -> list[Profiles]:
        """What is known of the inputs of a layer by place, for each border they are behind.

        Integer weights cannot take over combinations, which are no whole numbers.
        """
        if layer.source is None or layer.weights.is_quantized:
            return []
        value = layer.source.value
        return [behind[value] for behind in self._behind if value in behind]

    def by_place(self, layer: Layer) -> Mask:
        """Which input channels of a layer are not constant, but depend on the place alone."""
        found = np.zeros_like(self.constant(layer))
        for each in self.profiles(layer):
            found |= each.mask.reshape(-1)
        return found & ~self.constant(layer)

    def removable(self, stay: Mask) -> Mask:
        """Atoms that nothing needs, given some that stay.

        An atom can go when each layer that reads one of its channels either finds a constant there,
        or one that depends on the place alone, which it can account for, or has no weight for it
        but in rows that go too; and when no product with another computed tensor and no recurrent
        layer needs it. This grows from nothing, so that what is found is certain.
        """
        fixed = {
            layer: self.constant(layer) | self.by_place(layer)
            for layer in self._trace.layers
            if layer.inputs is not None
        }
        removed = np.zeros(self._trace.count, np.bool_)
        while True:
            needed = stay.copy()
            for layer in self._trace.layers:
                if layer.inputs is not None:
                    wanted = self.read(layer, removed) & ~fixed[layer]
                    needed[layer.inputs[wanted]] = True
            for pairing in self._trace.pairings:
                needed[pairing.needed(removed, self._known)] = True
            for cell in reversed(self._trace.cells):
                needed[cell.needed(needed, self._known)] = True
            if (~needed == removed).all():
                return removed
            removed = ~needed


def atoms_in(ids: Ids, count: int) -> Mask:
    """By atom, whether it is among these."""
    found = np.zeros(count, np.bool_)
    found[ids.reshape(-1)] = True
    return found
