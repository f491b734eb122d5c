"""What can be asked of `PruneChannels`."""

from __future__ import annotations

import dataclasses
from typing import Literal

__all__ = ["PruneOptions"]


@dataclasses.dataclass(frozen=True)
class PruneOptions:
    """Options of `PruneChannels`.

    Attributes:
        amount: Share of the cost to get rid of, from 0 to below 1.
        of: What cost: ``macs``, ``parameters``, or ``latency`` as measured here.
        criterion: What tells which channels matter. ``reconstruction``: what is left of the error
            at the next layers when their other inputs have taken over; ``activation``: what the
            channel adds to what they put out; ``stability``: how far the model's outputs move,
            measured for each head and each channel of small groups; ``l1``, ``l2``: norms of
            weights; ``fpgm``: distance to the other filters; ``bn-scale``: scales of
            BatchNormalization; ``saliency``: from a file (see ``saliency``).
        spread: How the amount is spread over groups: ``sensitivity`` prunes most where the model's
            outputs, as measured, move least; ``uniform`` prunes the same share everywhere.
        compensate: Let the inputs that stay take over, by least squares on calibration samples.
        round_to: Widths at convolutions stay multiples of this.
        max_ratio: Largest share of a group that may go.
        heads: Whether heads of attention may go.
        layers: Groups to prune, by wildcards in the name of the layer that makes the channels; all
            if none are given.
        keep_shapes: Only set weights to zero, so that training can go on with a mask of these
            zeros; `fold-pruned-channels` takes them out later.
        saliency: An .npz file with an array for each weight, by its name and in its shape: how
            much each number matters, such as ``(gradient * weight)^2`` (Taylor) or
            ``hessian * weight^2 / 2`` (optimal brain damage). They are added up over a channel.
    """

    amount: float = 0.2
    of: Literal["macs", "parameters", "latency"] = "macs"
    criterion: Literal[
        "reconstruction", "activation", "stability", "l1", "l2", "fpgm", "bn-scale", "saliency"
    ] = "reconstruction"
    spread: Literal["sensitivity", "uniform"] = "sensitivity"
    compensate: bool = True
    round_to: int = 8
    max_ratio: float = 0.75
    heads: bool = True
    layers: tuple[str, ...] = ()
    keep_shapes: bool = False
    saliency: str = ""

    def __post_init__(self) -> None:
        for name, value in (("amount", self.amount), ("max-ratio", self.max_ratio)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is from 0 to below 1, not {value:g}")
        if self.round_to < 1:
            raise ValueError(f"round-to is from 1, not {self.round_to}")
        if (self.criterion == "saliency") != bool(self.saliency):
            raise ValueError("criterion=saliency needs a file, and only it: saliency=FILE.npz")
