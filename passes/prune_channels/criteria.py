"""Which units of a group matter least: a number for each, or an order in which to remove them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import constant_array
from onnxopt.channels import Layer, Operand, Trace
from onnxopt.numerics.input_removal import costs_of_removal, removal_order, usual_damping
from onnxopt.rewriting import Refuse

from .evidence import Evidence, layer_input
from .units import Group

__all__ = ["DATA_FREE", "Order", "Scorer"]

Array = np.ndarray[Any, Any]

#: Criteria that look at weights only.
DATA_FREE = frozenset({"l1", "l2", "fpgm", "bn-scale", "saliency"})
#: So often at least the order is thought over.
_STEPS = 128


@dataclasses.dataclass(frozen=True)
class Order:
    """How to prune a group.

    Attributes:
        units: Indices of its units, what matters least first.
        errors: What it costs when all up to here are gone, in the criterion's own measure.
    """

    units: tuple[int, ...]
    errors: tuple[float, ...]


class Scorer:
    """Puts the units of groups in order.

    Args:
        trace: The channels of the graph.
        evidence: What the samples say.
        saliency: Saliencies of single weights, by the name of the weight; for ``saliency``.
    """

    def __init__(self, trace: Trace, evidence: Evidence, saliency: Mapping[str, Array]) -> None:
        self._trace = trace
        self._evidence = evidence
        self._saliency = saliency

    def order(self, group: Group, criterion: str) -> Order:
        """Put the units of a group in order.

        Raises:
            Refuse: When the criterion cannot be applied to it.
        """
        if criterion == "reconstruction":
            found = self._by_reconstruction(group)
            if found is not None:
                return found
            criterion = "l2"
        scores = self._scores(group, criterion)
        order = np.argsort(scores, kind="stable")
        return Order(tuple(order.tolist()), tuple(np.cumsum(scores[order]).tolist()))

    def _scores(self, group: Group, criterion: str) -> Array:
        match criterion:
            case "l1" | "l2":
                return self._by_magnitude(group, 1 if criterion == "l1" else 2)
            case "fpgm":
                return self._by_median(group)
            case "bn-scale":
                return self._by_scale(group)
            case "saliency":
                return self._by_saliency(group)
            case "activation":
                found = self._by_activation(group)
                return self._by_magnitude(group, 2) if found is None else found
        raise ValueError(f"unknown criterion '{criterion}'")

    def _by_magnitude(self, group: Group, norm: int) -> Array:
        """The norm of all weights that make or read a unit, relative to the mean in each layer."""
        total = np.zeros(len(group.units))
        for layer in group.writers:
            total += _relative(self._norms(group, layer, norm, outputs=True))
        for layer in group.readers:
            total += _relative(self._norms(group, layer, norm, outputs=False))
        return total

    def _norms(self, group: Group, layer: Layer, norm: int, *, outputs: bool) -> Array:
        blocks = np.abs(layer.blocks.astype(np.float64))
        axis = 2 if outputs else 1
        others = tuple(each for each in (1, 2, 3) if each != axis)
        sums = (blocks**norm).sum(axis=others).reshape(-1)
        atoms = layer.outputs if outputs else layer.inputs
        return self._by_unit(group, atoms, sums) ** (1 / norm)

    def _by_median(self, group: Group) -> Array:
        """Distance to all other filters: those near the middle can be replaced by the others.

        Source: He et al., Filter Pruning via Geometric Median, CVPR 2019, arXiv 1811.00250.
        """
        total = np.zeros(len(group.units))
        for layer in group.writers:
            blocks = layer.blocks.astype(np.float64)
            filters = blocks.transpose(0, 2, 1, 3).reshape(blocks.shape[0] * blocks.shape[2], -1)
            squares = np.square(filters).sum(axis=1)
            distances = squares[:, None] + squares - 2 * filters @ filters.T
            far = np.sqrt(np.maximum(distances, 0)).sum(axis=1)
            total += _relative(self._by_unit(group, layer.outputs, far))
        return total

    def _by_scale(self, group: Group) -> Array:
        """The magnitudes of BatchNormalization's scales (Liu et al., Network Slimming, 2017)."""
        total, found = np.zeros(len(group.units)), False
        for follower in self._trace.followers:
            if not isinstance(follower, Operand) or follower.node.op_type != "BatchNormalization":
                continue
            scale = constant_array(follower.node.inputs[1])
            if follower.index != 1 or scale is None:
                continue
            ids = self._trace.atoms[follower.channels.value].reshape(-1)
            sums = self._by_unit(group, ids, np.abs(scale.astype(np.float64)))
            if sums.any():
                total, found = total + sums, True
        if not found:
            raise Refuse("there is no BatchNormalization between its layers")
        return total

    def _by_saliency(self, group: Group) -> Array:
        """Sums of given saliencies of the weights that make or read a unit."""
        total, found = np.zeros(len(group.units)), False
        for layers, outputs in ((group.writers, True), (group.readers, False)):
            for layer in layers:
                value = layer.weights.node.inputs[layer.weights.index]
                table = self._saliency.get(_name(value))
                if table is None:
                    continue
                if table.shape != layer.weights.stored.shape:
                    raise Refuse("the saliencies have another shape than the weights")
                axis = 2 if outputs else 1
                others = tuple(each for each in (1, 2, 3) if each != axis)
                sums = layer.blocks_of(table.astype(np.float64)).sum(axis=others).reshape(-1)
                atoms = layer.outputs if outputs else layer.inputs
                total, found = total + self._by_unit(group, atoms, sums), True
        if not found:
            raise Refuse("there are no saliencies for its weights")
        return total

    def _by_activation(self, group: Group) -> Array | None:
        """The energy that a unit adds to what its readers put out, relative to all of it."""
        layers = self._moments(group)
        if layers is None:
            return None
        total = np.zeros(len(group.units))
        for weights, moments, units in layers:
            energy = moments.output_energy(weights) or 1.0
            costs = costs_of_removal(weights, moments, units)
            total[: len(costs)] += costs / energy
        return total

    def _by_reconstruction(self, group: Group) -> Order | None:
        layers = self._moments(group)
        if layers is None:
            return None
        candidates = np.arange(len(group.units))
        damping = max(usual_damping(len(weights), moments) for weights, moments, _ in layers)
        units, errors = removal_order(
            layers,
            candidates,
            len(candidates) - 1,
            damping,
            at_once=max(1, len(candidates) // _STEPS),
        )
        return Order(tuple(units), tuple(errors))

    def _moments(self, group: Group) -> list[tuple[Array, Any, Array]] | None:
        """Weights, moments of the rows, and units of the inputs, of each reader and its groups."""
        found: list[tuple[Array, Any, Array]] = []
        for layer in group.readers:
            source = layer_input(layer)
            if source is None or layer.inputs is None:
                return None
            units = self._unit_of(group, layer.inputs).reshape(layer.groups, -1)
            matrices = source.matrix(layer.weights.numbers)
            taps = matrices.shape[1] // units.shape[1]
            for part, matrix in enumerate(matrices):
                moments = self._evidence.moments(layer, part)
                if moments is None:
                    return None
                found.append((matrix, moments[0], units[part].repeat(taps)))
        return found

    def _unit_of(self, group: Group, atoms: Array) -> Array:
        numbers = np.full(self._trace.count, -1)
        for unit, members in enumerate(group.units):
            numbers[members] = unit
        return numbers[atoms]

    def _by_unit(self, group: Group, atoms: Array | None, sums: Array) -> Array:
        """Sums by unit of numbers by channel."""
        result = np.zeros(len(group.units))
        if atoms is not None:
            units = self._unit_of(group, atoms)
            inside = units >= 0
            np.add.at(result, units[inside], sums[inside])
        return result


def _relative(numbers: Array) -> Array:
    mean = float(numbers.mean())
    return numbers / mean if mean else numbers


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""
