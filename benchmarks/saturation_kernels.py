"""Kernels of ONNX Runtime that multiply 8-bit numbers, each with the inputs that are hardest on it.

Activations are 255, the largest, throughout. Weights of an output have one sign, and are as large
as the scheme lets them be:

- ``eight``: all 127, which overflows 16 bits wherever a kernel adds two products in them;
- ``seven``: all 64, which cannot (``reduce_range`` stays at or below that);
- ``pair-safe``: 127 and 1 at random, such that every two that a kernel is said to add up are within
  128, and those next to them are not: sums overflow if it adds up any others.

For convolutions there is also ``channels first``: safe pairs as the model's own layout would have
them, which is not how kernels multiply.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper
from onnxopt.passes.infer_shapes import InferShapes
from onnxopt.passes.quantize.lowering import lower
from onnxopt.passes.quantize.numbers import Numbers
from onnxopt.passes.quantize.parameters import for_range
from onnxopt.passes.quantize.plan import Mode, Plan
from onnxopt.passes.quantize.recurrent import RecurrentWeights
from onnxopt.passes.quantize.weights import Weights, pair_order, pairs_are_safe

from onnxopt.model import from_proto, to_proto
from onnxopt.regions import Product, Recurrence, products, recurrences

__all__ = [
    "KERNELS",
    "NAMES",
    "SCHEMES",
    "Case",
    "Kernel",
    "Scheme",
    "case",
    "cases",
    "feeds_of",
    "weights_of",
]

Array = np.ndarray[Any, Any]
Scheme = Literal["eight", "seven", "pair-safe", "channels first"]

SCHEMES: tuple[Scheme, ...] = ("eight", "seven", "pair-safe", "channels first")
_MOST = 127
_HALF = 64
#: Activations are within 0 and this.
_RANGE = 2.0


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One product and what it is given.

    Attributes:
        name: What it is called in tables.
        node: The node's text, from ``x`` and ``w`` to ``y``.
        weights: Shape of the weights.
        activations: Shape of the input.
        mode: How it is quantized.
        groups: Groups of a convolution.
    """

    name: str
    node: str
    weights: tuple[int, ...]
    activations: tuple[int, ...]
    mode: Mode = Mode.STATIC
    groups: int = 1

    @property
    def is_convolution(self) -> bool:
        """Whether the weights are [out, in / groups, ...] rather than [in, out]."""
        return self.node.startswith("Conv")

    @property
    def axis(self) -> int:
        """The axis of the weights that counts outputs."""
        return 0 if self.is_convolution else 1


def _product(
    name: str, op_type: str, inputs: int, *, rows: tuple[int, ...] = (9,), **more: Any
) -> Kernel:
    return Kernel(name, f"{op_type}(x, w)", (inputs, 20), (*rows, inputs), **more)


def _convolution(
    name: str,
    channels: int,
    kernel: tuple[int, ...],
    *,
    outputs: int = 16,
    groups: int = 1,
    attributes: str = "",
) -> Kernel:
    pads = ", ".join(str(size // 2) for size in kernel * 2)
    node = f"Conv<group={groups}, pads=[{pads}]{attributes}>(x, w)"
    weights = (outputs, channels // groups, *kernel)
    return Kernel(name, node, weights, (1, channels, *[11] * len(kernel)), groups=groups)


KERNELS: Mapping[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        _product("MatMul", "MatMul", 64),
        _product("MatMul, 33 inputs", "MatMul", 33),
        _product("MatMul, 3 inputs", "MatMul", 3),
        _product("MatMul, one row", "MatMul", 64, rows=(1,)),
        _product("MatMul, batches", "MatMul", 64, rows=(2, 5)),
        _product("MatMul, float result", "MatMul", 64, mode=Mode.STATIC_INPUT),
        _product("MatMul, 33 inputs, float result", "MatMul", 33, mode=Mode.STATIC_INPUT),
        _product("MatMul, dynamic", "MatMul", 64, mode=Mode.DYNAMIC),
        _product("MatMul, 33 inputs, dynamic", "MatMul", 33, mode=Mode.DYNAMIC),
        _product("Gemm", "Gemm", 64),
        _product("Gemm, 33 inputs", "Gemm", 33),
        _product("Gemm, float result", "Gemm", 64, mode=Mode.STATIC_INPUT),
        _convolution("Conv 1x1", 16, (1, 1)),
        _convolution("Conv 1x1, 15 channels", 15, (1, 1)),
        _convolution("Conv 1x1, 20 outputs", 16, (1, 1), outputs=20),
        _convolution("Conv 1x1, stride 2", 16, (1, 1), attributes=", strides=[2, 2]"),
        _convolution("Conv 3x3", 16, (3, 3)),
        _convolution("Conv 3x3, 5 channels", 5, (3, 3)),
        _convolution("Conv 3x3, 64 channels", 64, (3, 3), outputs=64),
        _convolution("Conv 3x3, dilated", 16, (3, 3), attributes=", dilations=[2, 2]"),
        _convolution("Conv 3x3, first layer", 3, (3, 3), attributes=", strides=[2, 2]"),
        _convolution("Conv 7x7, first layer", 3, (7, 7), attributes=", strides=[2, 2]"),
        _convolution("Conv 3x3, one channel", 1, (3, 3)),
        _convolution("Conv 3x3, 2 groups", 16, (3, 3), groups=2),
        _convolution("Conv 3x3, 2 groups of 5", 10, (3, 3), groups=2),
        _convolution("Conv 1x1, 2 groups", 32, (1, 1), groups=2),
        _convolution("Conv 3x3, 2 outputs a group", 8, (3, 3), groups=8),
        _convolution("Conv of one dimension", 16, (3,)),
        _convolution("Conv of one dimension, 5 channels", 5, (3,)),
        _convolution("depthwise 3x3", 16, (3, 3), groups=16),
        _convolution("depthwise 3x3, 5 channels", 5, (3, 3), outputs=5, groups=5),
        _convolution("depthwise 5x5", 32, (5, 5), outputs=32, groups=32),
        _convolution("depthwise of one dimension", 16, (5,), groups=16),
    )
}


_LSTM = "LSTM, dynamic"
_UNITS, _INPUTS = 12, 33
#: All kernels, in the order of tables.
NAMES = (*KERNELS, _LSTM)


def cases() -> Iterator[tuple[str, Scheme, Case, Array]]:
    """Every kernel with every scheme that says something of it, and what to feed it."""
    for kernel in KERNELS.values():
        for scheme in SCHEMES:
            weights = weights_of(kernel, scheme)
            if weights is not None:
                yield kernel.name, scheme, case(kernel, weights), feeds_of(kernel)
    for scheme in SCHEMES:
        if scheme != "channels first":
            yield _LSTM, scheme, *_recurrence(scheme)


def weights_of(kernel: Kernel, scheme: Scheme) -> Array | None:
    """int8 weights, in the layout of the kernel; None where the scheme says nothing new of it."""
    magnitudes = np.full(kernel.weights, _HALF if scheme == "seven" else _MOST, np.int8)
    order = pair_order(magnitudes, kernel.axis, kernel.groups)
    if scheme == "channels first":
        if order is None or (order == np.arange(len(order))).all():
            return None
        order = np.arange(len(order))
    if scheme in ("pair-safe", "channels first") and order is not None:
        magnitudes = _tight(kernel, order)
        safe = pairs_are_safe(magnitudes, kernel.axis, kernel.groups)
        assert safe is (scheme == "pair-safe")
    signs = np.where(np.arange(kernel.weights[kernel.axis]) % 2, -1, 1)
    return np.asarray(magnitudes * _along_outputs(kernel, signs), np.int8)


def _tight(kernel: Kernel, order: Array) -> Array:
    """127 and 1 at random, so that no pair of this order holds 127 twice."""
    large = np.random.default_rng(0).random(kernel.weights) < 0.6
    rows = np.ascontiguousarray(np.moveaxis(large, kernel.axis, 0))
    flat = rows.reshape(len(rows), -1)
    even = len(order) // 2 * 2
    flat[:, order[1:even:2]] &= ~flat[:, order[0:even:2]]
    return np.moveaxis(np.where(rows, _MOST, 1), 0, kernel.axis).astype(np.int8)


def _along_outputs(kernel: Kernel, numbers: Array) -> Array:
    shape = [1] * len(kernel.weights)
    shape[kernel.axis] = -1
    return numbers.reshape(shape)


@dataclasses.dataclass(frozen=True)
class Case:
    """A kernel with weights.

    Attributes:
        model: The model as `quantize` writes it.
        exact: The model in float, with the weights that the 8-bit ones stand for.
        step: What one 8-bit number of the output stands for; where the output is float, a 255th of
            what it can be at most.
    """

    model: onnx.ModelProto
    exact: onnx.ModelProto
    step: float


def case(kernel: Kernel, numbers: Array) -> Case:
    """The kernel with these 8-bit weights."""
    scales = np.full(kernel.weights[kernel.axis], 1 / _MOST, np.float32)
    weights = Weights(numbers, scales, kernel.axis)
    exact = _float_model(kernel, weights.dequantized())
    model = from_proto(exact)
    InferShapes()(model)
    (product,) = (each for each in products(model.graph) if isinstance(each, Product))
    flat = np.moveaxis(weights.dequantized(), kernel.axis, 0).reshape(len(scales), -1)
    sums = _RANGE * flat.sum(axis=1)
    ranges = {"x": (0.0, _RANGE), "y": (float(sums.min()), float(sums.max()))}
    numbers_of = Numbers(False, ranges, {product.key: weights})
    lower(model, Plan({product.key: kernel.mode}), numbers_of)
    return Case(to_proto(model), exact, for_range(*ranges["y"]).scale)


def _recurrence(scheme: Scheme) -> tuple[Case, Array]:
    """An LSTM whose inputs are all the largest; states, which it makes itself, are smaller."""
    found = []
    for inputs in (_INPUTS, _UNITS):
        shape = (inputs, 4 * _UNITS)
        numbers = weights_of(Kernel("", "MatMul(x, w)", shape, (1, inputs)), scheme)
        assert numbers is not None
        # Sums within 1, where sigmoid and tanh tell them apart.
        scales = np.full(shape[1], 1 / (_MOST * inputs), np.float32)
        found.append(Weights(numbers, scales, 1))
    exact = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]>'
        f" g (float[4, 2, {_INPUTS}] x) => (float[4, 1, 2, {_UNITS}] y)"
        f" {{ y = LSTM<hidden_size={_UNITS}>(x, w, r) }}"
    )
    for name, weights in zip("wr", found, strict=True):
        stored = np.ascontiguousarray(weights.dequantized().T[None])
        exact.graph.initializer.append(numpy_helper.from_array(stored, name))
    model = from_proto(exact)
    InferShapes()(model)
    (layer,) = (each for each in recurrences(model.graph) if isinstance(each, Recurrence))
    both = RecurrentWeights((found[0],), (found[1],))
    numbers_of = Numbers(False, {}, {}, recurrent={layer.key: both})
    lower(model, Plan({layer.key: Mode.DYNAMIC}), numbers_of)
    # Results are within -1 and 1.
    return Case(to_proto(model), exact, 1 / 255), np.ones((1, 4, 2, _INPUTS), np.float32)


def _float_model(kernel: Kernel, weights: Array) -> onnx.ModelProto:
    shape = ", ".join(map(str, kernel.activations))
    rank = ", ".join(f"d{axis}" for axis in range(len(kernel.activations)))
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]>'
        f" g (float[{shape}] x) => (float[{rank}] y) {{ y = {kernel.node} }}"
    )
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    return proto


def feeds_of(kernel: Kernel) -> Array:
    """float32 [feeds, ...]: all the largest; each the largest or 0; any, in whole steps."""
    generator = np.random.default_rng(1)
    shape = kernel.activations
    anything = generator.integers(0, 256, shape)
    anything.flat[0] = 255  # dynamic ranges are as wide
    steps = np.stack([np.full(shape, 255), 255 * generator.integers(0, 2, shape), anything])
    return (steps * np.float32(for_range(0, _RANGE).scale)).astype(np.float32)
