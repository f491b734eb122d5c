"""Where the channels of an input can be evened out, and what that would take.

Factors that what makes an activation can take into its constants cost no time, and become part of
the model that is quantized, if that is truer with them (`evened`). Where they would take a product
that was not computed before, they are a choice of the search, which has to find that the product
pays for itself (`divided_inputs`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.calibration import Channels, Observations
from onnxopt.pass_contract import Refusal
from onnxopt.regions import Product
from onnxopt.rewriting import Context, Refuse

from ..smooth_activations.applying import apply_factors
from ..smooth_activations.factors import best_factors
from ..smooth_activations.sites import Site, sites
from .numbers import Range

__all__ = ["DividedInput", "divided_inputs", "evened", "free_factors", "smoothing_sites"]

Array = np.ndarray[Any, Any]

#: Least gain at the outputs of the layers that read an activation, in decibels: where it costs
#: nothing, and where it takes a product.
_FREE_GAIN, _PAID_GAIN = 1.0, 2.0


@dataclasses.dataclass(frozen=True)
class DividedInput:
    """What the input of a product can be divided by.

    Attributes:
        factors: By channel.
        shaped: The same, so that they broadcast against the input.
        range: Of the divided input.
    """

    factors: Array
    shaped: Array
    range: Range


def smoothing_sites(model: ir.Model) -> list[Site]:
    """Activations whose channels can be scaled."""
    return [each for each in sites(model) if not isinstance(each, Refusal)]


def free_factors(found: Iterable[Site], observations: Observations) -> dict[str, Array]:
    """Factors that cost no time and are worth it, by name of the activation."""
    factors = {}
    for site in found:
        best = None if site.multiplies else _factors(site, observations, _FREE_GAIN)
        if best is not None:
            factors[site.value.name or ""] = best
    return factors


def evened(model: ir.Model, factors: Mapping[str, Array]) -> bool:
    """Divide activations by their factors, in place; whether any constants could take them."""
    context, changed = Context(model), False
    for site in smoothing_sites(model):
        best = factors.get(site.value.name or "")
        if best is not None and not site.multiplies:
            try:
                apply_factors(site, best, context)
            except Refuse:
                continue
            changed = True
    return changed


def divided_inputs(
    found: Iterable[Site], products: Sequence[Product], observations: Observations
) -> dict[str, DividedInput]:
    """Inputs that are worth dividing if a product more is, by key of the product that reads."""
    keys = {product.node: product.key for product in products}
    divided = {}
    for site in found:
        readers = [keys[layer.node] for layer in site.layers if layer.node in keys]
        best = _factors(site, observations, _PAID_GAIN) if site.multiplies and readers else None
        if best is None:
            continue
        seen = observations.get(site.value.name or "", Channels(site.axis))
        ends = float((seen.low / best).min()), float((seen.high / best).max())
        divided.update(dict.fromkeys(readers, DividedInput(best, site.shaped(best), ends)))
    return divided


def _factors(site: Site, observations: Observations, wanted: float) -> Array | None:
    try:
        return best_factors(site, observations, wanted)
    except Refuse:
        return None
