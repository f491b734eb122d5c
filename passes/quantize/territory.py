"""Which values of a graph are in 8 bits under a plan, and with which scale and zero point."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxopt.layers import layer_name
from onnxopt.regions import Clamp, Follower, FollowerKind, Product, clamp_after, follower, products

from .numbers import Divided, Numbers, Range
from .parameters import Parameters, before_affine
from .plan import Mode, Plan

__all__ = ["MissingRangeError", "Territory"]

#: Kinds of followers whose output has a scale of its own.
_OWN_SCALE = (FollowerKind.COMPUTE, FollowerKind.HARD_SWISH)
#: A saturated value may be past the bound of a clamp by so much of itself.
_ROUNDING = 1e-5


class MissingRangeError(Exception):
    """A tensor that is to be quantized was not seen in calibration; its name."""


class Territory:
    """What is in 8 bits.

    Products in a static mode, and what lies between them: a node follows when all it reads is in 8
    bits, and something that reads it wants 8 bits.

    Args:
        graph: The float graph.
        plan: What becomes of each product.
        numbers: Ranges.

    Attributes:
        products: The products of the graph, by node.
        followers: What else stays in 8 bits, by node.

    Raises:
        MissingRangeError: When a tensor has no range.
    """

    def __init__(self, graph: ir.Graph, plan: Plan, numbers: Numbers) -> None:
        self._plan, self._numbers = plan, numbers
        self.products = {
            found.node: found for found in products(graph) if isinstance(found, Product)
        }
        self.followers: dict[ir.Node, Follower] = {}
        self._clamps: dict[ir.Value, Clamp] = {}
        self._bounds: dict[ir.Value, tuple[float, float]] = {}
        self._parameters: dict[ir.Value, Parameters] = {}
        #: Values in 8 bits whose scale can still be chosen.
        self._owners: set[ir.Value] = set()
        self._narrow: set[ir.Value] = set()
        nodes = list(graph)
        for node in nodes:
            self._take_in(node)
        for node in reversed(nodes):
            if node in self.followers and not self._is_wanted(self.effective(node.outputs[0])):
                del self.followers[node]

    def mode(self, product: Product) -> Mode:
        """What becomes of a product."""
        return self._plan.mode(product.key)

    def effective(self, value: ir.Value) -> ir.Value:
        """The value behind the clamp that saturation stands for, if there is one."""
        clamp = self._clamps.get(value)
        return value if clamp is None else clamp.node.outputs[0]

    def clamp_of(self, node: ir.Node) -> Clamp | None:
        """The clamp that a node is, if saturation stands for it."""
        return next((clamp for clamp in self._clamps.values() if clamp.node is node), None)

    def why_float(self, found: Follower) -> str:
        """Why a node that could be in 8 bits is not."""
        for at in found.activations:
            value = found.node.inputs[at]
            if value is not None and value not in self._narrow:
                source = value.producer()
                name = f"'{value.name}', an input" if source is None else f"'{layer_name(source)}'"
                return f"reads {name}, which gives floats"
        if not self._is_wanted(self.effective(found.node.outputs[0])):
            return "reads 8 bits, but nothing behind it computes in 8 bits"
        return "reads 8 bits, but no zero point of 8 bits stands for what it adds"

    def parameters(self, value: ir.Value) -> Parameters:
        """Scale and zero point of a value.

        Raises:
            MissingRangeError: When it has no range.
        """
        if value not in self._parameters:
            low, high = self._range(value)
            bounds = self._bounds.get(value, (-math.inf, math.inf))
            self._parameters[value] = self._numbers.covering(low, high, bounds)
        return self._parameters[value]

    def smoothed(self, product: Product) -> Divided | None:
        """What a product reads in place of its input, if the plan says so."""
        if product.key not in self._plan.smoothed:
            return None
        return self._numbers.divided[product.key]

    def give(self, value: ir.Value, found: Range) -> None:
        """Make the range of a value known that the float graph does not have."""
        self._parameters[value] = self._numbers.covering(*found)

    def _take_in(self, node: ir.Node) -> None:
        product = self.products.get(node)
        if product is not None:
            if self.mode(product) is Mode.STATIC:
                self._own(product.unclamped, product.clamp)
            return
        found = follower(node)
        if found is None or not all(node.inputs[at] in self._narrow for at in found.activations):
            return
        output = node.outputs[0]
        if found.kind is FollowerKind.AFFINE:
            affine = self._affine(found)
            if affine is None:
                return
            found = affine
        self.followers[node] = found
        if found.kind in _OWN_SCALE:
            self._own(output, clamp_after(output))
        else:
            self._narrow.add(output)
            source = node.inputs[0]
            if found.kind is FollowerKind.PASS:
                assert source is not None
                self._parameters[output] = self.parameters(source)
                self._owners.discard(source)
            elif found.kind is FollowerKind.HARD_SIGMOID:
                self._parameters[output] = self._numbers.covering(0.0, 1.0)

    def _own(self, value: ir.Value, clamp: Clamp | None) -> None:
        """Take in a value with a scale of its own, and the clamp behind it."""
        if clamp is not None and clamp.holds_zero:
            self._clamps[value] = clamp
            value = clamp.node.outputs[0]
            self._bounds[value] = (clamp.low, clamp.high)
        self._narrow.add(value)
        self._owners.add(value)

    def _affine(self, found: Follower) -> Follower | None:
        """An affine step as a change of parameters, else as a node like any other, else None."""
        node = found.node
        source = node.inputs[found.activations[0]]
        assert source is not None
        if source in self._owners and len(source.uses()) == 1:
            try:
                wanted = self.parameters(node.outputs[0])
                x, y = before_affine(wanted, found.factor, found.summand)
            except ValueError:
                pass
            else:
                low, high = self._bounds.get(source, (-math.inf, math.inf))
                slack = _ROUNDING * (x.high - x.low)
                if low - slack <= x.low and x.high <= high + slack:
                    self._parameters[source], self._parameters[node.outputs[0]] = x, y
                    return found
        self._parameters.pop(node.outputs[0], None)
        if node.op_type == "BatchNormalization":
            return None
        constants = tuple(1 - at for at in found.activations)
        return Follower(node, FollowerKind.COMPUTE, found.activations, constants)

    def _is_wanted(self, value: ir.Value) -> bool:
        """Whether something reads a value in 8 bits."""
        for node, index in value.uses():
            product = self.products.get(node)
            if product is not None:
                narrow = self.mode(product) in (Mode.STATIC, Mode.STATIC_INPUT)
                if index == 0 and narrow and product.key not in self._plan.smoothed:
                    return True
            elif node in self.followers and index in self.followers[node].activations:
                return True
        return False

    def _range(self, value: ir.Value | None) -> Range:
        name = "" if value is None else value.name or ""
        found = self._numbers.ranges.get(name)
        if found is None:
            raise MissingRangeError(name)
        return found
