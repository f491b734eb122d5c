"""What the builder of an operator sees of a node, and what it gives back."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Set
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxopt.analysis import attributes
from onnxopt.rewriting import Refuse

__all__ = ["Builder", "Call", "Form", "NodeView", "Operand"]


class Form(enum.Enum):
    """How a value is wanted."""

    TENSOR = enum.auto()
    #: A small numpy array: sizes, axes, pads.
    HOST = enum.auto()
    #: Not a value of the graph: the device, or whether batch statistics are to be taken.
    DEVICE = enum.auto()
    TRAINING = enum.auto()


@dataclasses.dataclass(frozen=True)
class Operand:
    """Something that a function is called with.

    Attributes:
        value: The value; None for an optional input that is not given.
        form: How it is wanted.
    """

    value: ir.Value | None
    form: Form


@dataclasses.dataclass(frozen=True)
class Call:
    """What a node becomes.

    Attributes:
        function: Called with the operands; gives a tuple exactly when the node has several outputs.
        operands: What it is called with.
        in_place: Does the same in the memory of the first operand; used when nobody else needs it.
    """

    function: Callable[..., Any]
    operands: tuple[Operand, ...]
    in_place: Callable[..., Any] | None = None


class NodeView:
    """A node with its constants, the same for every opset revision.

    Args:
        node: The node.
        opset: Version of the standard opset.
        constants: Numbers of the values that are the same in every run and are no parameters.
        shadows: Parameters that stand for the integers of the model.
        ranks: Shapes of shapes.
    """

    def __init__(
        self,
        node: ir.Node,
        opset: int,
        constants: Mapping[ir.Value, NDArray[Any]],
        shadows: Set[ir.Value] = frozenset(),
        ranks: Set[ir.Value] = frozenset(),
    ) -> None:
        self.node = node
        self.opset = opset
        self._constants = constants
        self._shadows = shadows
        self._ranks = ranks
        self._read: set[str] = set()

    def beside(self, node: ir.Node) -> NodeView:
        """Another node, seen the same way."""
        return NodeView(node, self.opset, self._constants, self._shadows, self._ranks)

    @property
    def outputs(self) -> int:
        """How many outputs the node lists, unused ones included."""
        return len(self.node.outputs)

    def input(self, index: int) -> ir.Value | None:
        """An input; None when it is not given."""
        inputs = self.node.inputs
        return inputs[index] if index < len(inputs) else None

    def tensor(self, index: int) -> Operand:
        """An input as a tensor."""
        return Operand(self.input(index), Form.TENSOR)

    def host(self, index: int) -> Operand:
        """An input as a small array."""
        return Operand(self.input(index), Form.HOST)

    def tensors(self) -> tuple[Operand, ...]:
        """All inputs as tensors."""
        return tuple(self.tensor(index) for index in range(len(self.node.inputs)))

    def hosts(self) -> tuple[Operand, ...]:
        """All inputs as small arrays."""
        return tuple(self.host(index) for index in range(len(self.node.inputs)))

    @property
    def device(self) -> Operand:
        """The device that new tensors are made on."""
        return Operand(None, Form.DEVICE)

    @property
    def training(self) -> Operand:
        """Whether batch statistics are to be taken."""
        return Operand(None, Form.TRAINING)

    def constant(self, index: int) -> NDArray[Any] | None:
        """The numbers of an input that is the same in every run and no parameter, else None."""
        value = self.input(index)
        return None if value is None else self._constants.get(value)

    def is_computed(self, index: int) -> bool:
        """Whether an input is given and only known when the model runs."""
        return self.input(index) is not None and self.constant(index) is None

    def is_shadow(self, index: int) -> bool:
        """Whether an input is a parameter in float that stands for integers."""
        return self.input(index) in self._shadows

    def is_rank(self, index: int) -> bool:
        """Whether an input says how many sizes there are."""
        return self.input(index) in self._ranks

    def number(self, index: int) -> float | int | bool | None:
        """The one number of a constant input, else None."""
        array = self.constant(index)
        if array is None or array.size != 1:
            return None
        if array.dtype.kind not in "iufb":
            return float(array.reshape(())[()])
        return array.reshape(())[()].item()  # type: ignore[no-any-return]

    def ints(self, index: int, what: str) -> tuple[int, ...] | None:
        """Integers of a constant input; None when it is not given.

        Raises:
            Refuse: It is given and is only known when the model runs.
        """
        if self.input(index) is None:
            return None
        array = self.constant(index)
        if array is None:
            raise Refuse(f"{what} that are only known when the model runs")
        return tuple(int(number) for number in array.reshape(-1))

    def axes(self, index: int = 1) -> tuple[int, ...] | None:
        """Attribute ``axes`` or the constant input that took its place."""
        given = self.ints_attribute("axes")
        return given if given is not None else self.ints(index, "axes")

    def has_attribute(self, name: str) -> bool:
        """Whether an attribute is given."""
        self._read.add(name)
        return name in self.node.attributes

    def int_attribute(self, name: str, default: int) -> int:
        """An integer attribute."""
        self._read.add(name)
        return attributes.int_attribute(self.node, name, default)

    def float_attribute(self, name: str, default: float) -> float:
        """A float attribute."""
        self._read.add(name)
        return attributes.float_attribute(self.node, name, default)

    def string_attribute(self, name: str, default: str) -> str:
        """A string attribute."""
        self._read.add(name)
        return attributes.string_attribute(self.node, name, default)

    def ints_attribute(self, name: str) -> tuple[int, ...] | None:
        """An attribute of integers; None when it is not given."""
        self._read.add(name)
        return attributes.ints_attribute(self.node, name)

    def floats_attribute(self, name: str) -> tuple[float, ...] | None:
        """An attribute of floats; None when it is not given."""
        self._read.add(name)
        attribute = self.node.attributes.get(name)
        return None if attribute is None else tuple(attribute.as_floats())

    def strings_attribute(self, name: str) -> tuple[str, ...] | None:
        """An attribute of strings; None when it is not given."""
        self._read.add(name)
        attribute = self.node.attributes.get(name)
        return None if attribute is None else tuple(attribute.as_strings())

    def type_attribute(self, name: str, default: ir.DataType) -> ir.DataType:
        """An attribute that names an element type."""
        return ir.DataType(self.int_attribute(name, int(default)))

    def tensor_attribute(self, name: str) -> NDArray[Any] | None:
        """An attribute that holds a tensor; None when it is not given."""
        self._read.add(name)
        attribute = self.node.attributes.get(name)
        return None if attribute is None else np.asarray(attribute.as_tensor().numpy())

    def ignore_attributes(self, *names: str) -> None:
        """Say that some attributes change nothing here."""
        self._read.update(names)

    def unread_attributes(self) -> list[str]:
        """Attributes that nobody asked for: what they mean is not known."""
        return [name for name in self.node.attributes if name not in self._read]

    def require(self, holds: bool, reason: str) -> None:
        """Refuse the node unless a condition holds."""
        if not holds:
            raise Refuse(reason)


#: Turns a node into a call; raises `Refuse` with the reason when it cannot.
Builder = Callable[[NodeView], Call]
